"""What a planned comparison can detect, and what it costs: `imatrix-lab power`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imatrix_lab.compare.benchmarks import KNOWN, VOTES, group_sizes
from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.records.runs import blocks, find
from imatrix_lab.stats import power, preference
from imatrix_lab.stats.comparison import ALPHA
from imatrix_lab.stats.metrics import METRICS, Metric
from imatrix_lab.stats.paired import Sums
from imatrix_lab.stats.power import Design

DISCORDANCES = (0.02, 0.05, 0.10)
"""Shares of differing answers of two quants of one model that are shown where none was measured."""

PEOPLE, PROMPTS = (1, 3, 5, 10, 20), 150
DECIDED, AGREEMENT, TASTE = 0.7, 0.25, 0.02
"""Assumed of votes: the share that are no ties, the correlation of two people's on one prompt, and
of a person's on two prompts (with it, people's own means differ by a standard deviation of 12
points)."""


@dataclass(frozen=True)
class PowerRequest:
    """What is to be planned.

    Attributes
    ----------
    margin : smallest difference that matters, in the metric's unit: nats, or points.
    languages : each is compared, and every two of them give an interaction.
    discordance : share of answers that differ; None for `DISCORDANCES`. Of votes: no ties.
    icc : correlation of answers in a group; None for 1, the worst case: a group answers as one.
        Of votes: of two people's on one prompt.
    people : how many vote; None for `PEOPLE`.
    n_comparisons : tests in the family; alpha is divided by it (Bonferroni, Holm's worst case).
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
    people: int | None = None
    power: float = power.POWER


@dataclass(frozen=True)
class PowerRow:
    """One planned comparison.

    Attributes
    ----------
    question : the comparison in words.
    n : items or tokens in each language.
    detectable, power_superiority, power_equivalence, clusters_superiority, clusters_equivalence :
        see `stats.power.PowerAnalysis`; in stored units.
    n_superiority, n_equivalence : items or tokens needed in each language; of votes, 0 where no
        number of prompts is enough for so few people.
    hours, hours_equivalence : for all runs and languages, with n items and with those needed for
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


def plan_comparisons(request: PowerRequest) -> tuple[Metric, list[PowerRow]]:
    """Return what the planned comparisons can detect and need.

    Raises UsageError: neither a known task nor a pilot; a margin that is not positive, or too
        small.
    """
    if not 0 < request.margin < math.inf:
        what = f"the margin must be positive, not {request.margin:g}"
        raise UsageError(what, fix="--margin 0.005 for nats; --margin 1.5 for points of a score")
    if request.task == VOTES:
        return METRICS["score"], _votes(request)
    metric, designs, n_clusters = _designs(request)
    request = replace(request, margin=request.margin / metric.scale)
    n_languages = len(request.languages)
    n_pairs = n_languages * (n_languages - 1) // 2
    alpha = ALPHA / (request.n_comparisons or n_languages + n_pairs)
    rows = []
    for name, design in designs:
        rows.append(_row(request, f"one language, {name}", design, n_clusters, alpha))
        if n_pairs:
            question = f"interaction of two, {name}"
            rows.append(_row(request, question, design.doubled(), n_clusters, alpha))
    return metric, rows


def describe_votes(request: PowerRequest) -> str:
    """Return what is assumed of votes, in words."""
    decided, icc = _assumed(request)
    return (
        f"{100 * decided:g} % are no ties; those of two people on one prompt correlate by {icc:g},"
        f" a person's on two prompts by {TASTE:g}; fewer than {preference.RATERS_MIN} people speak"
        " for themselves alone"
    )


def _assumed(request: PowerRequest) -> tuple[float, float]:
    """Return the share of votes that are no ties, and the correlation on one prompt."""
    decided = DECIDED if request.discordance is None else request.discordance
    return decided, AGREEMENT if request.icc is None else request.icc


def _votes(request: PowerRequest) -> list[PowerRow]:
    """Return a row for each number of people; a vote is 1, 0 or -1, a difference of wins."""
    (decided, icc), margin = _assumed(request), request.margin / 100
    if margin >= decided:
        what = f"a margin of {request.margin:g} points, and {100 * decided:g} % of votes decided"
        raise UsageError(what, fix="a smaller --margin, or --discordance")
    if icc + TASTE > 1:
        raise UsageError(f"--icc {icc:g} leaves no room for people's taste ({TASTE:g})")
    alpha = ALPHA / (request.n_comparisons or len(request.languages))
    n = request.n_clusters or PROMPTS
    rate = request.units_per_second or math.nan
    rows = []
    for people in (request.people,) if request.people else PEOPLE:
        planned = preference.PlannedVotes(decided, icc, TASTE, people)
        analysis = planned.analyse(n, margin, alpha, request.power)
        needed = analysis.clusters_equivalence or math.nan
        hours = people * len(request.languages) / rate / 3600
        rows.append(
            PowerRow(
                question="1 person" if people == 1 else f"{people} people",
                sd=decided**0.5,
                design_effect=planned.variances(n)[-1] * n * people / decided,
                n=n,
                n_clusters=n,
                alpha=alpha,
                n_superiority=analysis.clusters_superiority,
                n_equivalence=analysis.clusters_equivalence,
                hours=n * hours,
                hours_equivalence=needed * hours,
                **vars(analysis),
            )
        )
    return rows


def _row(
    request: PowerRequest, question: str, design: Design, n_clusters: int, alpha: float
) -> PowerRow:
    try:
        analysis = power.analyse(design, n_clusters, request.margin, alpha, request.power)
    except ValueError as error:
        raise UsageError(str(error), fix="a larger --margin") from error
    n_runs, rate = request.n_runs * len(request.languages), request.units_per_second or math.nan
    hours, hours_equivalence = (
        n * design.cluster_size * n_runs / rate / 3600
        for n in (n_clusters, analysis.clusters_equivalence)
    )
    return PowerRow(
        question=question,
        sd=design.sd,
        design_effect=design.design_effect(),
        n=round(n_clusters * design.cluster_size),
        n_clusters=n_clusters,
        alpha=alpha,
        n_superiority=round(analysis.clusters_superiority * design.cluster_size),
        n_equivalence=round(analysis.clusters_equivalence * design.cluster_size),
        hours=hours,
        hours_equivalence=hours_equivalence,
        **vars(analysis),
    )


def _designs(request: PowerRequest) -> tuple[Metric, list[tuple[str, Design]], int]:
    """Return the metric, designs by what is assumed, and clusters in a language."""
    known = len(group_sizes(request.task)) if request.task in KNOWN else 0
    if request.pilot:
        metric, sums = _pilot(request)
        try:
            design = power.from_pilot(sums)
        except ValueError as error:
            raise BadRecords(str(error), where=request.pilot[0], fix="a longer pilot") from error
        n_clusters = request.n_clusters or known or int((sums.sizes > 0).sum())
        return metric, [("as in the pilot", design)], max(n_clusters, 2)
    if not known:
        raise UsageError(
            f"task {request.task!r} needs a pilot" if request.task else "need a task or a pilot",
            fix=f"--pilot RUN_A --pilot RUN_B, or --task with one of: {' '.join(KNOWN)}",
        )
    shares: Sequence[float] = DISCORDANCES
    if request.discordance is not None:
        shares = (request.discordance,)
    if request.margin >= 100 * max(shares):
        differ = f"where {100 * max(shares):g} % of answers differ"
        what = f"a margin of {request.margin:g} points, {differ}: none can be that large"
        raise UsageError(what, fix="a smaller --margin, or --discordance")
    designs = [
        (f"{100 * share:g} % of answers differ", task_design(request.task, share, request.icc))
        for share in shares
        if request.margin < 100 * share
    ]
    return METRICS["score"], designs, request.n_clusters or known


def task_design(task: str, discordance: float, icc: float | None = None) -> Design:
    """Return the design of a task's items: in the groups of a known benchmark, else single ones.

    `icc`: correlation of answers in a group; None for 1, the worst case: a group answers as one.
    """
    if task not in KNOWN:
        return power.binary_design(discordance)
    return power.binary_design(discordance, 1.0 if icc is None else icc, group_sizes(task))


def _pilot(request: PowerRequest) -> tuple[Metric, Sums]:
    """Return paired differences of the pilot's largest text."""
    runs = [run for path in request.pilot for run in find(path)]
    if len(runs) != 2:
        raise UsageError(f"a pilot is two runs, not {len(runs)}", fix="--pilot RUN_A --pilot RUN_B")
    metric = request.metric or ("score" if runs[0].kind == "item" else "kld_nats")
    by_text: Sequence[Sums] = [
        Sums.of_finite(
            block.values[0][metric] - block.values[1][metric], block.codes, len(block.names)
        )
        for block in blocks(dict(enumerate(runs)), (metric,))
    ]
    return METRICS[metric], max(by_text, key=Sums.n)
