"""What a planned comparison can find, and what it costs: `imatrix-lab power`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imatrix_lab.compare.runs import blocks, find
from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.stats import power
from imatrix_lab.stats.comparison import ALPHA, METRICS, Metric
from imatrix_lab.stats.paired import Sums
from imatrix_lab.stats.power import Design

DISCORDANCES = (0.02, 0.05, 0.10)
"""Shares of unequal answers of two quants of one model that are shown where none was measured."""


@dataclass(frozen=True)
class Known:
    """How the items of a benchmark come in groups.

    Attributes
    ----------
    n_clusters, n_items : groups (one context, or one prompt) and items.
    size_cv : standard deviation of group sizes over their mean.
    icc : assumed where there is no pilot: 1 says that a group answers as one, the worst case.
    """

    n_items: int
    n_clusters: int
    size_cv: float
    icc: float = 1.0


KNOWN = {
    # MixEval 2024-06-01 without GPQA, counted: groups are contexts, or prompts without one
    "mixeval": Known(n_items=3996, n_clusters=2984, size_cv=0.840),
    "mixeval-free-form": Known(n_items=2000, n_clusters=1284, size_cv=1.004),
    "mixeval-multiple-choice": Known(n_items=1996, n_clusters=1700, size_cv=0.477),
}


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes
    ----------
    margin : smallest difference that matters, in the metric's unit: nats, or points.
    languages : each is compared, and every two of them give an interaction.
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
            # two independent differences: their difference has twice the variance
            both = replace(design, sd=design.sd * 2**0.5)
            rows.append(_row(request, f"interaction of two, {name}", both, n_clusters, m))
    return metric, rows


def _row(request: Request, question: str, design: Design, n_clusters: int, m: int) -> Row:
    alpha, margin = ALPHA / m, request.margin
    error, df = design.std_error(n_clusters), n_clusters - 1
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
        power_superiority=power.superiority(margin, error, df, alpha),
        power_equivalence=power.equivalence(0.0, margin, error, df, alpha),
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
    known = KNOWN[request.task]
    icc = known.icc if request.icc is None else request.icc
    shares = DISCORDANCES if request.discordance is None else (request.discordance,)
    size = known.n_items / known.n_clusters
    designs = [
        (f"{100 * d:g} % unequal answers", power.binary_design(d, icc, size, known.size_cv))
        for d in shares
    ]
    return METRICS["score"], designs, request.n_clusters or known.n_clusters


def _known(request: Request, otherwise: int) -> int:
    return KNOWN[request.task].n_clusters if request.task in KNOWN else otherwise


def _pilot(request: Request) -> tuple[Metric, Sums]:
    """Return paired differences of the pilot's first text."""
    import numpy as np

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
