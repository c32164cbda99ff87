"""Measure our overhead: our steps and the plain llama.cpp programs, in turn.

    make bench                     demo model, 24 windows, about 12 minutes on 2 cores
    python tools/bench_quant.py --windows 48 --rounds 3

Each round runs both sides in turn, in changing order, so that a slow spell of the machine does not
hit only one of them. Figures are wall seconds; the ratio is ours / plain, where ours includes what
a plain run skips: checks, sha256, manifest, verification. `bench_collect.py` looks at the imatrix
more closely.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import imatrix_argv, quantize

from imatrix_lab.core import process
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.imatrix import collect
from imatrix_lab.llamacpp.toolchain import default_backend
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import run
from imatrix_lab.types import ComputeOptions, Request


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    tokens = arguments.windows * 512
    request = Request("nb", ("Q4_K_M",), "demo", tokens, Path(), ComputeOptions(default_backend()))
    session = Session(Store(), Silent())
    tools, model = tune.prepare(request, session)
    corpus = tune.corpus_of(request, tools, model, session)
    options = tune.imatrix_options(request, model, corpus)
    compute = options.compute

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def empty_store() -> Session:
            return Session(Store(Path(tempfile.mkdtemp(dir=root))), Silent())

        def plain_imatrix() -> None:
            program, target = tools.program("llama-imatrix"), root / "plain.gguf"
            text, n = corpus.calibration, arguments.windows
            process.run(imatrix_argv(program, model.path, text, target, compute, n))

        def our_imatrix() -> None:
            collect.collect(tools, model, corpus, options, empty_store())

        imatrix = collect.collect(tools, model, corpus, options, session)

        def plain_quant() -> None:
            quantize(tools, model.path, "Q4_K_M", root / "plain-q4.gguf", imatrix.path)

        def our_quant() -> None:
            heldout = tune.heldout_in(corpus)
            spec = run.QuantSpec(model, imatrix, "Q4_K_M", run.Options(compute), heldout=heldout)
            run.quantize(tools, spec, empty_store())

        print(f"demo model, {arguments.windows} windows of 512, {compute.threads} threads")
        compare("imatrix", plain_imatrix, our_imatrix, arguments.rounds)
        compare("quantize and verify", plain_quant, our_quant, arguments.rounds)


def compare(name: str, plain: Callable[[], None], ours: Callable[[], None], rounds: int) -> None:
    """Time both sides in turn and print medians and their ratio."""
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for i in range(rounds):
        sides = [("plain", plain), ("ours", ours)]
        for side, call in sides if i % 2 == 0 else reversed(sides):
            began = time.monotonic()
            call()
            seconds[side].append(time.monotonic() - began)
    a, b = (statistics.median(seconds[s]) for s in ("plain", "ours"))
    print(f"{name:21} plain {a:7.1f} s   ours {b:7.1f} s   ratio {b / a:.2f}   ({rounds} rounds)")


if __name__ == "__main__":
    main()
