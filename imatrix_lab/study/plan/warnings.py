"""Where a study cannot answer its question, and what would: sentences for the plan."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from imatrix_lab.core.format import size
from imatrix_lab.core.hub_http import ask, endpoint, need_network
from imatrix_lab.core.store import NotBuilt
from imatrix_lab.errors import FetchFailed, ImatrixLabError
from imatrix_lab.llamacpp import compute
from imatrix_lab.quantize import run
from imatrix_lab.study.context import Shared
from imatrix_lab.study.graph import Step
from imatrix_lab.study.plan.benchmark import Rate
from imatrix_lab.study.plan.power import Effect
from imatrix_lab.study.recipe import DEMO, NONE, Recipe
from imatrix_lab.tasks import definition as definitions
from imatrix_lab.types import CorpusFacts

FEW_DOCUMENTS = 6
"""With fewer, no pattern of signs is rare enough for 5 %."""
FEW_SAMPLES = 3
HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Room:
    """What a study takes at most, and what there is."""

    disk_peak_bytes: int
    disk_free_bytes: int
    memory_bytes: int
    memory_limit_bytes: int


def of_absence(lacking: Exception, recipe: Recipe) -> str:
    """Say what must be there before time and disk are known."""
    if isinstance(lacking, ImatrixLabError):
        why, fix = lacking.what, lacking.fix
    elif isinstance(lacking, NotBuilt) and str(lacking) == "toolchain":
        why, fix = "llama.cpp is not built yet", "imatrix-lab toolchain build"
    else:
        names = [spec for spec in recipe.models if spec == DEMO or spec.startswith("hf:")]
        why = f"{', '.join(names)} is not here yet"
        fix = "; ".join(f"imatrix-lab model fetch {spec}" for spec in names)
    return f"time and disk are not known: {why}" + (f"; try: {fix}" if fix else "")


def of_corpora(
    corpora: Mapping[str, CorpusFacts | None], steps: Mapping[str, Step], recipe: Recipe
) -> Iterator[str]:
    """Tell texts that are shorter than asked for."""
    for step, found in corpora.items():
        asked = int(steps[step].inputs["n_tokens"])
        if found and found.n_tokens < 0.9 * asked:
            yield (
                f"{steps[step].what}: there are {found.n_tokens:,} tokens, {asked:,} are asked for:"
                " fewer tokens or samples, or more text (imatrix-lab corpus add)"
            )


def of_samples(recipe: Recipe) -> Iterator[str]:
    """Tell what so few samples cannot say."""
    n = recipe.calibration.samples
    if n == 1:
        yield (
            "one sample of each language: what a language does cannot be told from what its one"
            f" text does; calibration.samples = {FEW_SAMPLES}"
        )
    elif n < FEW_SAMPLES:
        yield (
            f"{n} samples leave a language's noise {n - 1} degree of freedom: only effects many"
            " times larger are found, and the smallest differences told here are of documents"
            f" alone; calibration.samples = {FEW_SAMPLES}"
        )


def of_types(shared: Shared) -> Iterator[str]:
    """Tell quants that llama-quantize will not make."""
    if NONE not in shared.recipe.calibration.texts:
        return
    for model in shared.models:
        options = run.Options(compute.compute_for(model.facts, shared.compute()))
        for kind in shared.recipe.types:
            if run.dry_run(shared.tools, model, kind, options)[1]:
                yield f"{kind} of {model.label} cannot be made without an imatrix: it will lack"


def of_tasks(recipe: Recipe) -> Iterator[str]:
    """Tell benchmarks whose items cannot be had."""
    hubs = []
    for task in recipe.tasks:
        found = definitions.get(task.name)
        if task.data:
            continue
        if found.source.hub:
            hubs.append(found.source.hub)
        else:
            yield f"{found.name} is not on the Hub: {found.source.get or 'fetch it'}, then data = "
    for hub in dict.fromkeys(hubs):
        try:
            _ask_for(hub)
        except FetchFailed as error:
            fix = f" ({error.fix})" if error.fix else ""
            yield f"no items of {hub}: {error.what}{fix}; or data = a file of them"


def _ask_for(hub: str) -> None:
    need_network()

    def call() -> object:
        from huggingface_hub import HfApi

        return HfApi(endpoint=endpoint()).dataset_info(hub, timeout=HUB_TIMEOUT_S)

    ask(f"datasets/{hub}", "main", call)


def of_effects(found: Sequence[Effect], recipe: Recipe) -> Iterator[str]:
    """Tell texts and tasks on which a difference of the margin would not be seen."""
    metrics = {e.power.unit for e in found if e.power.margin != e.power.margin}
    for unit in sorted(metrics):
        yield (
            f"no margin is declared for what is measured in {unit}: nothing can come out as"
            " equivalent; comparison.margins"
        )
    few = {e.on: e.clusters for e in found if e.clusters < FEW_DOCUMENTS}
    for on, n in few.items():
        yield f"{on}: {n} documents are too few for any test; {FEW_DOCUMENTS} is the least"
    blind: dict[tuple[str, str], list[Effect]] = {}
    for effect in found:
        if effect.is_blind() and effect.on not in few:
            blind.setdefault((effect.type, effect.power.unit), []).append(effect)
    for (kind, unit), those in blind.items():
        seen = [e.power.detectable for e in those]
        needed = [e.clusters_needed for e in those]
        on = ", ".join(dict.fromkeys(e.on for e in those))
        yield (
            f"{kind} on {on}: differences below {_span(seen, '.2g')} {unit} are likely missed, and"
            f" the margin is {those[0].power.margin:g}; {_span(needed, ',d')} documents or items"
            " would decide"
        )


def _span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def of_rates(rates: Mapping[str, Rate]) -> Iterator[str]:
    """Tell times that are too long."""
    if any(rate.was_busy for rate in rates.values()):
        yield (
            "the machine was busy when it was measured: left alone, it takes a fraction of these"
            " times; plan again once it is quiet"
        )


def of_room(room: Room) -> Iterator[str]:
    """Tell where disk or memory is too small."""
    if room.disk_peak_bytes > room.disk_free_bytes:
        yield (
            f"the study takes {size(room.disk_peak_bytes)} of disk, and"
            f' {size(room.disk_free_bytes)} are free: keep = "scores" with limits.disk_gib'
        )
    if room.memory_bytes > room.memory_limit_bytes:
        yield (
            f"its largest step takes {size(room.memory_bytes)} of memory, and it may take"
            f" {size(room.memory_limit_bytes)}: limits.disk_gib makes batches of quants"
        )
