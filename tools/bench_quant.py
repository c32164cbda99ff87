"""What driving costs: our steps beside the plain llama.cpp programs, in one run.

    make bench                     demo model, 24 windows, about 12 minutes on 2 cores
    python tools/bench_quant.py --windows 48 --rounds 3

Each round runs both sides in turn, in changing order, so that a slow spell of the machine
does not fall on one of them. Figures are wall seconds; the ratio is ours / plain, where
ours includes what a plain run leaves out: checks, sha256, manifest, verification. The second
line is llama-imatrix against itself: four windows in a decode, against one.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from imatrix_lab.core import process
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.imatrix import collect
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.toolchain import default_backend
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import run as quantize
from imatrix_lab.types import ComputeOptions, Request


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    tokens = arguments.windows * 512
    request = Request("nb", ("Q4_K_M",), "demo", tokens, Path(), ComputeOptions(default_backend()))
    store, quiet = Store(), Silent()
    tools, model = tune.prepare(request, Session(store, quiet))
    corpus = tune.corpus_of(request, tools, model, Session(store, quiet))
    options = tune.imatrix_options(request, model, corpus)
    compute = options.compute

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        out = root / "plain.gguf"

        def plain_imatrix(at_once: int = 1) -> None:
            program = tools.program("llama-imatrix")
            argv = programs.imatrix_argv(
                program, model.path, corpus.calibration, out,
                dataclasses.replace(compute, n_batch=at_once * 512),
                programs.ImatrixOptions((0, arguments.windows)),
            )  # fmt: skip
            process.run(argv)

        def our_imatrix() -> None:
            fresh = Store(Path(tempfile.mkdtemp(dir=root)))
            collect.collect(tools, model, corpus, options, Session(fresh, quiet))

        imatrix = collect.collect(tools, model, corpus, options, Session(store, quiet))
        heldout = tune.heldout_in(corpus)

        def plain_quant() -> None:
            target = root / "plain-q4.gguf"
            argv = programs.quantize_argv(
                tools.program("llama-quantize"), model.path, target, "Q4_K_M",
                programs.QuantizeOptions(compute.threads, str(imatrix.path)),
            )  # fmt: skip
            process.run(argv)

        def our_quant() -> None:
            fresh = Store(Path(tempfile.mkdtemp(dir=root)))
            options = quantize.Options(compute)
            spec = quantize.QuantSpec(model, imatrix, "Q4_K_M", options, heldout=heldout)
            quantize.quantize(tools, spec, Session(fresh, quiet))

        print(f"demo model, {arguments.windows} windows of 512, {compute.threads} threads")
        compare("imatrix", plain_imatrix, our_imatrix, arguments.rounds)
        compare("four windows a decode", plain_imatrix, lambda: plain_imatrix(4), arguments.rounds)
        compare("quantize and verify", plain_quant, our_quant, arguments.rounds)


def compare(name: str, plain: Callable[[], None], ours: Callable[[], None], rounds: int) -> None:
    """Time both sides in turn and print medians and their ratio."""
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for i in range(rounds):
        sides = [("plain", plain), ("ours", ours)]
        for side, run in sides if i % 2 == 0 else reversed(sides):
            began = time.monotonic()
            run()
            seconds[side].append(time.monotonic() - began)
    a, b = (statistics.median(seconds[s]) for s in ("plain", "ours"))
    print(f"{name:21} plain {a:7.1f} s   ours {b:7.1f} s   ratio {b / a:.2f}   ({rounds} rounds)")


if __name__ == "__main__":
    main()
