"""Whether divergence is in proportion to the error: each group's coefficient by each type.

    python tools/bench_sensitivity.py --model demo --language nb
    python tools/bench_sensitivity.py --model smollm2-f16.gguf --language en --tokens 32768

Each group of tensors is replaced in memory by what a type makes of it, as probes are, and reads the
same pieces of calibration text: KLD by the sum of relative errors. Last all groups at once: what
they lose together by what they lose each alone. Some minutes a type on 2 cores.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from imatrix_lab.cli.terminal import Terminal
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.llamacpp import ggml
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import probes
from imatrix_lab.score.patched import Patched
from imatrix_lab.types import ComputeOptions, Request

TYPES = ("Q2_K", "Q4_K", "Q5_K", "Q3_K", "IQ4_XS", "Q6_K")


def main() -> None:
    """Print a row for each group as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--language", default="nb")
    parser.add_argument("--tokens", type=int, default=16_384, help="of the imatrix")
    parser.add_argument("--pieces", type=int, default=probes.PIECES_MIN)
    parser.add_argument("--types", nargs="+", default=TYPES)
    arguments = parser.parse_args()
    session, compute = Session(Store(), Terminal()), ComputeOptions("cpu")
    request = Request(arguments.language, (), arguments.model, arguments.tokens, Path(), compute)
    tools, model = tune.prepare(request, session)
    corpus = tune.corpus_of(request, tools, model, session)
    imatrix = tune.imatrix_of(request, tools, model, corpus, session)
    probing = probes.probing(tools, model, (corpus, imatrix), compute, session)
    with TemporaryDirectory() as folder:
        run = probes.Run(probing, Path(folder), session)
        with Patched(tools, probing.kernel, model, probing.settings, Interruptible()) as engine:
            engine.open_tensors(tools, ggml.load(tools), session)
            table(run, engine, arguments.types, arguments.pieces)


def table(run: probes.Run, engine: Patched, types: list[str], n_pieces: int) -> None:
    """Print coefficients by group and type."""
    batches = range(-(-n_pieces // probes.BATCH_PIECES))
    run.read_reference(engine, batches)
    errors = {t: probes.errors_at(run.probing, t, run.session) for t in types}
    print("group".ljust(24), *(t.rjust(9) for t in types))
    apart = dict.fromkeys(types, 0.0)
    whole = {"all": [name for names in run.groups.values() for name in names]}
    for group, names in (run.groups | whole).items():
        print(group.ljust(24), end="", flush=True)
        for t in types:
            kld = run.divergence_with(engine, names, t, batches)
            apart[t] += kld if group != "all" else 0.0
            value = kld / apart[t] if group == "all" else kld / sum(errors[t][n] for n in names)
            print(f" {value:9.4g}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
