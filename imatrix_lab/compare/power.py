"""What a planned comparison can find, and what it costs: `imatrix-lab power`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.records.runs import blocks, find
from imatrix_lab.stats import power
from imatrix_lab.stats.comparison import ALPHA, METRICS, Metric
from imatrix_lab.stats.paired import Sums
from imatrix_lab.stats.power import Design

DISCORDANCES = (0.02, 0.05, 0.10)
"""Shares of unequal answers of two quants of one model that are shown where none was measured."""


# MixEval 2024-06-01 without GPQA, counted: how many groups of how many items. A group is a
# context, or a prompt without one.
_FREE_FORM = {1: 950, 2: 202, 3: 61, 4: 24, 5: 20, 6: 4, 7: 6, 8: 3, 9: 4, 10: 1, 11: 2, 12: 2,
              13: 1, 16: 2, 19: 1, 21: 1}  # fmt: skip
_MULTIPLE_CHOICE = {1: 1485, 2: 162, 3: 39, 4: 9, 5: 2, 6: 1, 8: 1, 10: 1}
KNOWN = {
    "mixeval": (_FREE_FORM, _MULTIPLE_CHOICE),
    "mixeval-free-form": (_FREE_FORM,),
    "mixeval-multiple-choice": (_MULTIPLE_CHOICE,),
}
"""Benchmarks, as counts of groups by their size."""


def group_sizes(task: str) -> np.ndarray:
    """Return how many items each group of a known benchmark has, (G,)."""
    counts = [pair for part in KNOWN[task] for pair in part.items()]
    return np.repeat([size for size, _ in counts], [n for _, n in counts])


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes
    ----------
    margin : smallest difference that matters, in the metric's unit: nats, or points.
    languages : each is compared, and every two of them give an interaction.
    discordance : share of unequal answers; None for `DISCORDANCES`.
    icc : of a group's answers; None for 1, the worst case: it answers as one.
    n_comparisons : tests in the family; alpha is divided by it (Holm's worst case).
    n_runs : quants to be scored.
    units_per_second : items or tokens a second, measured; 0 if unknown.
    """

    task: str
    margin: float
    languages: tuple[str, ...]
    discordance: float | None = None
    icc: float | None = None
    pilot: tuple[Path, ...] = ()
    metric: str | None = None
    n_clusters: int | None = None
    n_comparisons: int | None = None
    n_runs: int = 2
    units_per_second: float = 0.0
    power: float = power.POWER


@dataclass(frozen=True)
class Row:
    """One planned comparison.

    Attributes
    ----------
    question : the comparison in words.
    detectable : smallest true difference found with the wanted probability, in stored units.
    power_superiority : of finding a true difference of the margin.
    power_equivalence : of showing equivalence where there is no difference.
    n_superiority, n_equivalence : items or tokens needed for both, in each language.
    hours : for all runs and languages, at the number of items there is and as needed for
        equivalence; NaN without a rate.
    """

    question: str
    sd: float
    design_effect: float
    n: int
    n_clusters: int
    alpha: float
    detectable: float
    power_superiority: float
    power_equivalence: float
    n_superiority: int
    n_equivalence: int
    clusters_superiority: int
    clusters_equivalence: int
    hours: float
    hours_equivalence: float


def plan(request: Request) -> tuple[Metric, list[Row]]:
    """Return what the planned comparisons can find and need.

    Raises
    ------
    UsageError : neither a known task nor a pilot; a margin that is not positive.
    """
    if not request.margin > 0:
        raise UsageError(f"a margin of {request.margin} is no difference that matters")
    metric, designs, n_clusters = _designs(request)
    request = replace(request, margin=request.margin / metric.scale)
    n_languages = len(request.languages)
    n_pairs = n_languages * (n_languages - 1) // 2
    m = request.n_comparisons or n_languages + n_pairs
    rows = []
    for name, design in designs:
        rows.append(_row(request, f"one language, {name}", design, n_clusters, m))
        if n_pairs:
            rows.append(
                _row(request, f"interaction of two, {name}", design.doubled(), n_clusters, m)
            )
    return metric, rows


def _row(request: Request, question: str, design: Design, n_clusters: int, m: int) -> Row:
    alpha, margin = ALPHA / m, request.margin
    found = power.clusters_for_superiority(design, margin, request.power, alpha)
    equal = power.clusters_for_equivalence(design, margin, request.power, alpha)
    cost = [float("nan")] * 2
    if request.units_per_second:
        runs = request.n_runs * len(request.languages)
        cost = [
            power.hours(n * design.cluster_size, runs, request.units_per_second)
            for n in (n_clusters, equal)
        ]
    return Row(
        question=question,
        sd=design.sd,
        design_effect=design.design_effect(),
        n=round(n_clusters * design.cluster_size),
        n_clusters=n_clusters,
        alpha=alpha,
        detectable=power.detectable(design, n_clusters, request.power, alpha),
        power_superiority=power.planned(design, n_clusters, margin, alpha),
        power_equivalence=power.planned(design, n_clusters, 0.0, alpha, margin),
        n_superiority=round(found * design.cluster_size),
        n_equivalence=round(equal * design.cluster_size),
        clusters_superiority=found,
        clusters_equivalence=equal,
        hours=cost[0],
        hours_equivalence=cost[1],
    )


def _designs(request: Request) -> tuple[Metric, list[tuple[str, Design]], int]:
    """Return the metric, designs by what is assumed, and clusters in a language."""
    if request.pilot:
        metric, sums = _pilot(request)
        try:
            design = power.from_pilot(sums)
        except ValueError as error:
            raise BadRecords(str(error), where=request.pilot[0], fix="a longer pilot") from error
        n_clusters = request.n_clusters or _known(request, int((sums.sizes > 0).sum()))
        return metric, [("as in the pilot", design)], max(n_clusters, 2)
    if request.task not in KNOWN:
        raise UsageError(
            f"nothing is known of task {request.task!r}",
            fix=f"--pilot RUN_A --pilot RUN_B, or --task {' '.join(KNOWN)}",
        )
    sizes = group_sizes(request.task)
    icc = 1.0 if request.icc is None else request.icc
    shares = DISCORDANCES if request.discordance is None else (request.discordance,)
    designs = [
        (f"{100 * d:g} % unequal answers", power.binary_design(d, icc, sizes)) for d in shares
    ]
    return METRICS["score"], designs, request.n_clusters or len(sizes)


def _known(request: Request, otherwise: int) -> int:
    return len(group_sizes(request.task)) if request.task in KNOWN else otherwise


def _pilot(request: Request) -> tuple[Metric, Sums]:
    """Return paired differences of the pilot's first text."""
    runs = [run for path in request.pilot for run in find(path)]
    if len(runs) != 2:
        raise UsageError(f"a pilot is two runs, not {len(runs)}", fix="--pilot RUN_A --pilot RUN_B")
    metric = request.metric or ("score" if runs[0].kind == "item" else "kld_nats")
    found: Sequence[Sums] = []
    for block in blocks(dict(enumerate(runs)), (metric,)):
        moved = block.values[0][metric] - block.values[1][metric]
        good = np.isfinite(moved)
        found = [*found, Sums.of(moved[good], block.codes[good], len(block.names))]
    largest = max(found, key=Sums.n)
    return METRICS[metric], largest
