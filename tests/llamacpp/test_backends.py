"""The other backends that can be had without hardware, beside the processor: where they are built.

`imatrix-lab toolchain build --backend vulkan` (or blas) in the user's store turns these on. Vulkan
runs on Mesa's software driver where there is no GPU.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from imatrix_lab.core.store import Store
from imatrix_lab.imatrix import format, moments
from imatrix_lab.llamacpp.toolchain import find
from tests import tiny_model
from tests.conftest import REAL_ROOT
from tests.score import made
from tools import common

PROGRAM = [sys.executable, "-c", "from imatrix_lab.cli.main import main; main()"]
FIRST, HALF = 1e-6, 1e-2
"""Of a column's sum, relative to the largest of its matrix: what no product came before, and the
rest, which llama.cpp's Vulkan sums in half precision."""

MOVED = 2e-3
"""Of all tokens, those that half precision sends to another expert: measured, 1 of 2,048."""


@pytest.fixture(scope="module", params=["vulkan", "blas"])
def backend(request):
    """A backend that is built, and finds its device."""
    with pytest.MonkeyPatch.context() as patch:
        if "GGML_VK_VISIBLE_DEVICES" not in os.environ:
            patch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
        found = find(Store(REAL_ROOT), request.param)
        if found is None:
            pytest.skip(f"llama.cpp is not built for {request.param}")
        if request.param == "vulkan" and found.signature()["devices"] == "none":
            pytest.skip("llama.cpp finds no Vulkan device")
        yield request.param


@pytest.fixture(scope="module")
def lab(backend, tools, subprocess_env, tmp_path_factory):
    """A function: words -> what the command prints, in one cache."""
    folder = tmp_path_factory.mktemp("backends")
    environment = subprocess_env(folder / "cache", tools)

    def run(*words):
        argv = [*PROGRAM, *map(str, words), "--threads", "1"]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def collected(lab, own_text, tmp_path_factory):
    """A function: model and flags -> an imatrix with moments of 16 windows."""
    text, folder = own_text(2048), tmp_path_factory.mktemp("collected")

    def make(model, *flags):
        out = folder / f"{len(list(folder.iterdir()))}.gguf"
        words = ["imatrix", "build", "--model", model, "--corpus", text, "--ctx", 128, "--moments"]
        lab(*words, "--out", out, *flags)
        return out

    return make


def means(path):
    """E[x²] of each input over all experts: some tokens go to another one (`MOVED`)."""
    entries = format.read(path).entries
    return {name: e.sums.sum(axis=0) / e.counts.sum() for name, e in entries.items()}


def blocks(path):
    """E[x xᵀ] of each input in blocks, over all experts."""
    found, entries = moments.read(path), format.read(path).entries
    return {
        name: sum(found.blocks(name, i) for i in range(n)) / entries[name].counts.sum()
        for name, (n, _, _) in {name: found.shape(name) for name in found.inputs}.items()
    }


def counts(path):
    return {name: entry.counts for name, entry in format.read(path).entries.items()}


def close(a, b):
    assert a.keys() == b.keys() and a
    for name, values in a.items():
        allowed = FIRST if name.startswith(("blk.0.attn_q", "blk.0.attn_k")) else HALF
        assert np.abs(values - b[name]).max() <= allowed * np.abs(values).max(), name


@pytest.mark.parametrize("experts", [0, 4])
def test_what_is_collected_is_the_processors(backend, collected, tmp_path, experts):
    model = tiny_model.write(tmp_path / "m-f16.gguf", experts=experts)
    ours, theirs = (collected(model, "--backend", b) for b in ("cpu", backend))
    close(means(ours), means(theirs))
    close(blocks(ours), blocks(theirs))
    theirs = counts(theirs)
    for name, tokens in counts(ours).items():
        assert np.abs(tokens - theirs[name]).max() <= MOVED * tokens.sum(), name


@pytest.mark.parametrize(
    "flags", [["--gpu-layers", "1"], ["--override-tensor", "ffn_down=CPU"], ["--n-cpu-moe", "1"]]
)
def test_with_tensors_in_both_memories(backend, collected, tmp_path, flags):
    if backend == "blas":
        pytest.skip("BLAS has no memory of its own")
    model = tiny_model.write(tmp_path / "m-f16.gguf", experts=4 * ("moe" in flags[0]))
    close(
        means(collected(model, "--backend", "cpu")),
        means(collected(model, "--backend", backend, *flags)),
    )


def test_no_layer_on_the_gpu_is_the_processor_to_the_last_bit(backend, collected, tiny):
    if backend == "blas":
        pytest.skip("BLAS multiplies otherwise")
    ours, theirs = (
        collected(tiny, "--backend", "cpu"),
        collected(tiny, "--backend", backend, "--gpu-layers", "0"),
    )
    theirs = means(theirs)
    assert all(np.array_equal(values, theirs[name]) for name, values in means(ours).items())


def test_scores_agree_but_for_the_backend(backend, lab, tools, tiny, tmp_path):
    quant = common.quantize(tools, tiny, "Q4_0", tmp_path / "q4.gguf")
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": made.prose(60, i)}) + "\n" for i in range(4)))
    for name in ("cpu", backend):
        words = ["score", "run", "--reference", tiny, "--quant", quant, "--text"]
        lab(*words, f"own={text}", "--ctx", 128, "--out", tmp_path / name, "--backend", name)
    argv = [*PROGRAM, "score", "agree", tmp_path / "cpu", tmp_path / backend, "--json"]
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=True)
    agreed = json.loads(done.stdout)
    assert "toolchain.backend" in agreed["differ_in"]
    klds = [r["kld_mean"]["estimate"] for r in agreed["rows"] if r["kld_mean"]]
    assert klds[0] > 0 and abs(klds[0] - klds[1]) < 0.1 * klds[0]
