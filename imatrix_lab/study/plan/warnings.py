"""Where a study cannot answer its question, and how to change that: sentences for the plan."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from imatrix_lab.core.format import size
from imatrix_lab.core.hub_http import dataset_commit
from imatrix_lab.core.store import NotBuilt
from imatrix_lab.errors import FetchFailed, ImatrixLabError
from imatrix_lab.llamacpp import compute, size_types
from imatrix_lab.quantize import run
from imatrix_lab.study.context import Shared
from imatrix_lab.study.graph import Step
from imatrix_lab.study.plan.benchmark import Speed
from imatrix_lab.study.plan.power import Effect
from imatrix_lab.study.recipe import NONE, Recipe, is_remote
from imatrix_lab.tasks import definition
from imatrix_lab.types import CorpusFacts

FEW_DOCUMENTS = 6  # with fewer, no pattern of signs is rare enough for 5 %
FEW_SAMPLES = 3
HUB_TIMEOUT_S = 5.0


def of_absence(error: Exception, recipe: Recipe) -> str:
    """Return what must be built or fetched before time and disk are known."""
    if isinstance(error, ImatrixLabError):
        why, fix = error.what, error.fix
    elif isinstance(error, NotBuilt) and str(error) == "toolchain":
        why, fix = "llama.cpp is not built yet", "imatrix-lab toolchain build"
    else:
        names = [model for model in recipe.models if is_remote(model)]
        why = f"{', '.join(names)} is not fetched yet"
        fix = "; ".join(f"imatrix-lab model fetch {name}" for name in names)
    return f"time and disk are unknown: {why}" + (f"; try: {fix}" if fix else "")


def of_corpora(
    corpora: Mapping[str, CorpusFacts | None], steps: Mapping[str, Step]
) -> Iterator[str]:
    """Yield texts that are shorter than the recipe asks for."""
    for step, corpus in corpora.items():
        n_tokens = int(steps[step].inputs["n_tokens"])
        if corpus and corpus.n_tokens < 0.9 * n_tokens:
            fix = "fewer tokens or samples, or more text: imatrix-lab corpus add FILE"
            fix += " --lang LANGUAGE --name mine --licence CC0-1.0"
            have = f"{corpus.n_tokens:,} of {n_tokens:,} tokens"
            yield f"{steps[step].what} has {have}; try: {fix}"


def of_samples(recipe: Recipe) -> Iterator[str]:
    """Yield what so few samples cannot show."""
    n = recipe.calibration.samples
    if n == 1:
        confounded = "an effect of the language cannot be separated from an effect of its one text"
        yield f"one sample per language: {confounded}; try: calibration.samples = {FEW_SAMPLES}"
    elif n < FEW_SAMPLES:
        yield (
            f"{n} samples per language leave {n - 1} degree of freedom for the noise: only effects"
            " many times larger are detected, and the smallest differences above consider"
            f" documents only; try: calibration.samples = {FEW_SAMPLES}"
        )


def of_types(shared: Shared) -> Iterator[str]:
    """Yield quants that llama-quantize will not make."""
    if NONE not in shared.recipe.calibration.texts:
        return
    for model in shared.models:
        options = run.Options(compute.compute_for(model.facts, shared.compute()))
        for quant_type in itertools.filterfalse(size_types.is_size, shared.recipe.types):
            if run.dry_run(shared.tools, model, quant_type, options)[1]:
                skipped = f"the 'none' baseline of {model.label} will be skipped for it"
                yield f"{quant_type} requires an imatrix: {skipped}"


def of_tasks(recipe: Recipe) -> Iterator[str]:
    """Yield benchmarks whose items cannot be fetched."""
    without_data = [definition.get(task.name) for task in recipe.tasks if not task.data]
    for benchmark in without_data:
        if not benchmark.source.hub:
            get = benchmark.source.get or "fetch it"
            yield f"{benchmark.name} is not on the Hub; try: {get}, then data = FOLDER"
    for hub in dict.fromkeys(b.source.hub for b in without_data if b.source.hub):
        try:
            dataset_commit(hub, "main", HUB_TIMEOUT_S)
        except FetchFailed as error:
            fix = f"{error.fix}; or " if error.fix else ""
            yield f"no items of {hub}: {error.what}; try: {fix}data = FILE with the items"


def of_effects(effects: Sequence[Effect]) -> Iterator[str]:
    """Yield texts and tasks on which a difference of the margin would not be detected."""
    for unit in sorted({e.power.unit for e in effects if math.isnan(e.power.margin)}):
        why = "so no two calibrations can come out as equivalent"
        yield f"no margin is declared in {unit}, {why}; try: comparison.margins"
    few = {e.on: e.clusters for e in effects if e.clusters < FEW_DOCUMENTS}
    for on, n in few.items():
        yield f"{on}: {n} documents are too few for any test; at least {FEW_DOCUMENTS} are needed"
    blind: dict[tuple[str, str], list[Effect]] = {}
    for effect in effects:
        if effect.is_blind() and effect.on not in few:
            blind.setdefault((effect.type, effect.power.unit), []).append(effect)
    for (quant_type, unit), group in blind.items():
        detectable = _span([e.power.detectable for e in group], ".2g")
        needed = _span([e.clusters_needed for e in group], ",d")
        on = ", ".join(dict.fromkeys(e.on for e in group))
        yield (
            f"{quant_type} on {on}: differences below {detectable} {unit} are likely missed, but"
            f" the margin is {group[0].power.margin:g}; {needed} documents or items are needed"
        )


def _span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def of_speeds(speeds: Mapping[str, Speed]) -> Iterator[str]:
    """Yield that times are too long."""
    if any(speed.was_busy for speed in speeds.values()):
        slow = "the machine was busy when its speed was measured"
        fix = "the same command once it is idle"
        yield f"{slow}: the study will take a fraction of these times; try: {fix}"


def of_space(disk: int, free: int, memory: int, limit: int) -> Iterator[str]:
    """Yield that disk or memory is too small."""
    if disk > free:
        fix = 'keep = "scores" with limits.disk_gib'
        yield f"the study needs {size(disk)} of disk; {size(free)} is free; try: {fix}"
    if memory > limit:
        fix = "limits.disk_gib, which makes batches of quants"
        yield f"largest step needs {size(memory)} of memory; limit is {size(limit)}; try: {fix}"
