"""The demo model: widened without changing the function, and the main job on it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.models import demo as demo_model
from imatrix_lab.models import resolve

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


def test_widening_does_not_change_the_logits(tools, demo, tmp_path):
    import numpy as np

    narrow = tmp_path / "narrow.gguf"
    demo_model._assemble(narrow)
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


def logits(tools, path):
    import numpy as np

    llama_cpp = tools.bindings()
    model = llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False)
    tokens = model.tokenize(TEXT.encode())
    model.eval(tokens)
    found = np.array(model.scores[: len(tokens)])
    model.close()
    return found


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
