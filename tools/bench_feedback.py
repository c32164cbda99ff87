"""How much output error rounding with feedback leaves, on text that it has not seen.

    imatrix-lab imatrix build --model demo --corpus FOLDER --moments --full . -o nb.gguf
    python tools/bench_feedback.py error --heldout other.gguf nb-4k.gguf nb-16k.gguf
    python tools/bench_feedback.py time nb.gguf

`error`: some matrices are rounded with the moments of each file (collected whole), for a row of
shrinkages, and their expected output error is taken under the moments of another file, which has
other text. Printed is that error as a share of plain rounding's, the geometric mean over matrices;
with whole moments and with 256-wide blocks of them; and with damping as in GPTQ, a share of the
mean diagonal added to the diagonal. `time`: seconds of llama-quantize and of feedback.
"""

import argparse
import collections
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import diagonal_blocks, quantize
from numpy.typing import NDArray

from imatrix_lab.cli.terminal import Terminal
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.imatrix import format, moments
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.toolchain import cores
from imatrix_lab.models import resolve, weights
from imatrix_lab.quantize import feedback

SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7)
ROLES = ("attn_q", "attn_output", "ffn_gate", "ffn_down")
LAYERS = (2, 8, 14)
ROWS = 192
BLOCK = 256

Matrix = NDArray[np.float64]


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("error", "time"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--types", nargs="*", default=["Q3_K", "Q4_K"])
    parser.add_argument("--heldout", type=Path)
    parser.add_argument("moments", nargs="+", type=Path)
    options = parser.parse_args()
    session = Session(Store(), Terminal())
    tools = get_toolchain("cpu", session)
    model = resolve.resolve(options.model, session, tools)
    kernel = feedback.Kernel(tools, session)
    if options.what == "time":
        for path in options.moments:
            for kind in options.types:
                _time(kernel, tools, feedback.Source(model, path), f"{kind}_M")
        return
    for path in options.moments:
        for kind in options.types:
            _error(kernel, feedback.Source(model, path), options.heldout, kind)


def _time(kernel: feedback.Kernel, tools: Any, source: feedback.Source, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        path = quantize(tools, source.model.path, kind, Path(folder) / "q.gguf", source.imatrix)
        plain_s, began = time.monotonic() - began, time.monotonic()
        shutil.copy(path, path.with_name("copy.gguf"))
        n = len(feedback.apply(kernel, source, path, cores(), Terminal()))
        fed_s = time.monotonic() - began
    ratio = (plain_s + fed_s) / plain_s
    print(f"{kind}: llama-quantize {plain_s:.1f} s, feedback in {n} tensors {fed_s:.1f} s more"
          f" ({ratio:.2f} times)")  # fmt: skip


def _error(kernel: feedback.Kernel, source: feedback.Source, heldout: Path, kind: str) -> None:
    own, other = moments.read(source.imatrix), moments.read(heldout)
    assert own and other
    entries = format.read(source.imatrix).entries
    tensors, ggml = weights.tensors(source.model), kernel.ggml
    logs = collections.defaultdict[tuple[str, str, float], list[float]](list)
    for name in [f"blk.{layer}.{role}.weight" for layer in LAYERS for role in ROLES]:
        w = weights.read_rows(ggml, tensors[name], 0, ROWS)
        n_tokens = float(entries[name].counts[0])
        h, truth = (m.blocks(name)[0].astype(np.float64) for m in (own, other))
        importance = (np.diag(h) / n_tokens).astype(np.float32)
        plain = _loss(w, ggml.dequantize(ggml.quantize(w, kind, importance), kind), truth)
        for way, blocks in (("whole", h[None]), ("256", diagonal_blocks(h, BLOCK))):
            for shrink in SHRINKAGES:
                damped = blocks + shrink * np.mean(np.diag(h)) * np.eye(blocks.shape[1])
                rules = {way: feedback.factor(blocks, shrink)}
                rules[f"{way}, damped"] = feedback.factor(damped, 0.0)
                for rule, factor in rules.items():
                    q = ggml.dequantize(kernel.rounded(w, kind, factor, importance), kind)
                    ratio = float(np.log(_loss(w, q, truth) / plain))
                    logs[rule, "all", shrink].append(ratio)
                    logs[rule, f"{w.shape[1]} columns", shrink].append(ratio)
    print(f"\n{kind}, moments of {n_tokens:,.0f} tokens; error on other text, of plain rounding's")
    print("| moments | matrices | " + " | ".join(f"{s:g}" for s in SHRINKAGES) + " |")
    print("|---|---|" + "---:|" * len(SHRINKAGES))
    for rule, which in dict.fromkeys((rule, which) for rule, which, _ in logs):
        if which == "all" or "damped" not in rule:
            means = [float(np.exp(np.mean(logs[rule, which, s]))) for s in SHRINKAGES]
            print(f"| {rule} | {which} | " + " | ".join(f"{m:.3f}" for m in means) + " |")


def _loss(w: NDArray[np.float32], q: NDArray[np.float32], h: Matrix) -> float:
    error = (w - q).astype(np.float64)
    return float(np.sum((error @ h) * error))


if __name__ == "__main__":
    main()
