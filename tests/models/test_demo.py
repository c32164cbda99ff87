"""The demo model: widened and off its grid, the function unchanged; and the main job on it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.llamacpp import ggml
from imatrix_lab.models import demo as demo_model
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import read_header

pytestmark = pytest.mark.demo
COMMAND = str(Path(sys.executable).parent / "imatrix-lab")
TEXT = "Været i Bergen er vått, men folk går ut likevel. The weather in Bergen is wet."


@pytest.fixture(scope="module")
def store(store_at, tmp_path_factory):
    return store_at(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def demo(store):
    return resolve.resolve("demo", Session(store, Silent()))


def test_every_tensor_takes_a_k_quant(demo):
    assert demo.facts.fallback == () and demo.facts.channels == 768
    assert demo.facts.file_type == "F16" and demo.facts.license == "gemma"
    assert {p.name for p in demo.notice} >= {"GEMMA_TERMS.html", "NOTICE.md"}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "narrow.gguf"
    demo_model._assemble(path)
    return path


def test_the_logits_are_those_of_the_source(tools, demo, narrow, tmp_path):
    found = resolve.facts((narrow,))
    # llama-quantize gives the embeddings Q8_0 by a rule of their own, and counts one fewer
    assert (found.channels, len(found.fallback)) == (640, 91)
    f32 = tmp_path / "narrow-f32.gguf"
    argv = [tools.program("llama-quantize"), "--allow-requantize", narrow, f32, "F32"]
    subprocess.run([*map(str, argv)], check=True, capture_output=True)
    before, after = logits(tools, f32), logits(tools, demo.path)
    assert before.shape == after.shape
    # F16 weights against F32: 11 bits of mantissa; logits of this model lie within about 30
    assert np.abs(before - after).max() < 0.1
    assert (before.argmax(1) == after.argmax(1)).all()
    p, q = log_softmax(before), log_softmax(after)
    assert (np.exp(p) * (p - q)).sum(1).mean() < 1e-4  # nats; Q8_0 costs 20 times that


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def logits(tools, path):
    llama_cpp = tools.bindings()
    model = llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False)
    tokens = model.tokenize(TEXT.encode())
    model.eval(tokens)
    found = np.array(model.scores[: len(tokens)])
    model.close()
    return found


TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q5_0", "IQ4_XS")


def rows_of(path):
    """Some rows of each matrix, by name."""
    for tensor in read_header(path).tensors:
        if len(tensor.shape) == 2:
            matrix = np.memmap(path, np.float16, "r", tensor.offset, tensor.shape[::-1])
            yield tensor.name, matrix[:: len(matrix) // 32].astype(np.float32)


def relative_error(library, rows, kind):
    error = library.dequantize(library.quantize(rows, kind, None), kind) - rows
    return float((error**2).sum() / (rows**2).sum())


def test_no_type_costs_less_than_it_would_on_other_weights(tools, demo):
    """Weights off every grid lose as Gaussian ones do; on its own grid a type loses nothing."""
    library, rng = ggml.load(tools), np.random.default_rng(1)
    usual_by_width = {}
    for name, rows in rows_of(demo.path):
        width = rows.shape[1]
        if width not in usual_by_width:
            random = rng.standard_normal((64, width), np.float32)
            random[:, 5::6] *= width != demo_model.WIDE  # the channels that widening added
            usual_by_width[width] = {k: relative_error(library, random, k) for k in TYPES}
        for kind, usual in usual_by_width[width].items():
            assert relative_error(library, rows, kind) > 0.8 * usual, (name, kind)


def test_the_source_lies_on_its_grid(tools, narrow):
    """What the test above is there to notice."""
    library = ggml.load(tools)
    by_name = {t.name: t for t in read_header(narrow).tensors}
    for role, kind in (("attn_output", "Q4_K"), ("attn_q", "Q5_0")):
        tensor = by_name[f"blk.1.{role}.weight"]
        assert tensor.type_name == kind
        shape = (tensor.shape[1], tensor.size_bytes // tensor.shape[1])
        rows = library.dequantize(np.memmap(narrow, np.uint8, "r", tensor.offset, shape), kind)
        assert relative_error(library, rows[:32], kind) < 1e-4


def test_weights_are_the_same_bytes_on_every_machine(demo):
    data = hashlib.sha256()
    with demo.path.open("rb") as file:
        file.seek(min(t.offset for t in read_header(demo.path).tensors))
        while block := file.read(1 << 24):
            data.update(block)
    assert data.hexdigest() == "be9840e07485b3a8e16987c813492602372a51cb4bec9d0c97a8b697a2cbe15b"


def test_main_job(tools, store, demo, tmp_path, subprocess_env):
    env = subprocess_env(store.root, tools)
    out = tmp_path / "out"
    argv = [COMMAND, "tune", "nb", "--no-quick", "--tokens", "2048", "--type", "Q4_K_M"]
    argv += ["--out", str(out), "--json"]
    run = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (q,) = json.loads(run.stdout)["quants"]
    assert q["fallback"] == [] and q["n_tensors"] == 236
    assert 1 < q["perplexity_reference"] < q["perplexity"] < 2 * q["perplexity_reference"]
    assert "Gemma Terms of Use" in (out / "README.md").read_text()
    assert (out / "GEMMA_TERMS.html").exists()
