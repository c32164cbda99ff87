"""Play a study of a 70B model through on clusters of 1 to 64 machines, without computing.

    python tools/simulate_cluster.py [RECIPE] [--workers 1 4 16 64] [--whole]

The steps are those of the recipe; what they cost comes from the rates below, which are assumed:
machines with a 48 GB card that holds part of the model, and a file server. What matters is the
shape: how far more machines help, and which steps the study then waits for.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

from imatrix_lab.core.format import duration, size
from imatrix_lab.core.store import Store
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.quantize import probes, sensitivity
from imatrix_lab.study import recipe, steps
from imatrix_lab.study.cluster.split import split, waits_for
from imatrix_lab.study.cluster.there import Signed
from imatrix_lab.study.context import Shared
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.graph import Step
from imatrix_lab.study.plan.placement import Placement, Task, place
from imatrix_lab.types import Model, ModelFacts

PARAMETERS, LAYERS, CHANNELS, VOCABULARY = 70_553_706_496, 80, 8192, 128_256
MATRICES = 7  # of a layer
BITS = {"2": 2.9, "3": 3.6, "4": 4.7, "5": 5.6, "6": 6.6, "8": 8.5}
"""Bits a weight, by the digit in a type's name."""
TOKENS_PER_S = {"imatrix": 120.0, "sensitivity": 120.0, "score": 60.0, "task": 60.0, "votes": 60.0}
WEIGHTS_PER_S = {"quant": 5e7, "errors": 5e7, "loss": 2e8}
FIXED_S = {"corpus": 120.0, "merge": 30.0, "items": 30.0, "page": 1.0, "tidy": 1.0}
MEMORY_BYTES = 256 << 30


class Sizes(dict[tuple[str, str], int]):
    """Bytes of a quant, by a model's label and a type of any name."""

    def __missing__(self, key: tuple[str, str]) -> int:
        bits = next(bits for digit, bits in BITS.items() if digit in key[1])
        return int(PARAMETERS * bits / 8)


def shared_70b(path: Path, folder: Path) -> Shared:
    """Return what the steps of a recipe share, for a model that is not there."""
    settings = recipe.load(path)
    facts = ModelFacts(
        "llama", "70B", "", PARAMETERS, LAYERS, CHANNELS, VOCABULARY, 131_072, 0, "F16",
        2 * PARAMETERS, 16.0, {"F16": 562}, (),
    )  # fmt: skip
    model = Model("70B", folder / "70B.gguf", (folder / "70B.gguf",), "0" * 64, facts, "70B.gguf")
    tools = Toolchain(folder, folder, folder, "0", "cuda", "none")
    signed = Signed(**vars(tools), signed={"commit": "0", "backend": "cuda", "compiler": "none"})
    return Shared(settings, Folder(folder), Store(folder), signed, (model,), Sizes())


def n_probes(model: Model | None = None) -> int:
    """Return how many probes of a sensitivity such a model takes: by role and band of its depth."""
    return len(sensitivity.KINDS) * (MATRICES * sensitivity.n_bands(LAYERS) + 2)


def seconds(step: Step) -> float:
    """Return what a step takes on any of the machines."""
    if step.kind in FIXED_S:
        return FIXED_S[step.kind]
    if step.kind in WEIGHTS_PER_S:
        return PARAMETERS / WEIGHTS_PER_S[step.kind]
    own = step.cost / TOKENS_PER_S[step.kind]
    if step.kind == "sensitivity":  # which quantizes all weights with each kind of type
        share = step.cost / ((1 + n_probes()) * steps.PROBE_TOKENS)
        own += share * len(sensitivity.KINDS) * PARAMETERS / WEIGHTS_PER_S["quant"]
    return own


def simulated(shared: Shared, n_workers: int, n_parts: int) -> tuple[Placement, dict[str, Step]]:
    """Return a study played through on machines, with parts as for `n_parts` of them."""
    with mock.patch.object(probes, "n_probes", n_probes):
        planned = split(steps.steps(shared), {}, n_parts)
    every = [s for s in planned if s.kind != "tidy"]
    by_id = {step.id: step for step in every}
    quant_bytes = {
        s.id: shared.sizes["70B", str(s.inputs["type"])] for s in every if s.kind == "quant"
    }
    tasks = []
    for step in every:
        after = tuple(n for n in waits_for(step) if n in by_id)
        made = quant_bytes.get(step.id, 1 << 26)
        tasks.append(Task(step.id, step.what, after, made, step.memory_bytes))
    machines = {f"machine {i + 1}": MEMORY_BYTES for i in range(n_workers)}
    return place(tasks, machines, lambda name, machine: seconds(by_id[name])), by_id


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="borgersen-goodwin-2025")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--whole", action="store_true", help="without parts of steps")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = full(recipe.find(args.recipe), Path(folder))
        shared = shared_70b(path, Path(folder))
        alone = simulated(shared, 1, 1)[0].seconds
        print("| machines | time | speed-up | busy | between machines | the study waits for |")
        print("|---:|---:|---:|---:|---:|---|")
        for n in args.workers:
            placement, by_id = simulated(shared, n, 1 if args.whole else n)
            busy = sum(placement.busy_s().values()) / n / placement.seconds
            waits = Counter[str]()
            for step in placement.chain():
                waits[by_id[step.id].kind] += round(step.ends_s - step.begins_s)
            words = ", ".join(f"{kind} {duration(s)}" for kind, s in waits.most_common(3))
            print(
                f"| {n} | {duration(placement.seconds)} | {alone / placement.seconds:.1f} |"
                f" {busy:.0%} | {size(placement.fetched_bytes())} | {words} |"
            )


def full(path: Path, folder: Path) -> Path:
    """Return a copy of a recipe with a model in place of the demo model: not its reduced form."""
    text = path.read_text(encoding="utf-8")
    copy = folder / path.name
    copy.write_text(text.replace('models = ["demo"]', 'models = ["70B.gguf"]'), encoding="utf-8")
    return copy


if __name__ == "__main__":
    main()
