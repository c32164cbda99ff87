"""Runs in, verdicts out: everything `imatrix-lab compare` does but print."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imatrix_lab.compare import adjust, controls, design, sizes
from imatrix_lab.compare.comparer import TextComparer
from imatrix_lab.compare.controls import Control
from imatrix_lab.compare.design import ComparisonPlan, Level
from imatrix_lab.compare.interactions import (
    Corner,
    Interaction,
    TypeInteraction,
    interactions,
    type_interactions,
)
from imatrix_lab.compare.sizes import SizeGap
from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.records.runs import (
    DEFAULT_METRICS,
    Run,
    blocks,
    differing,
    find,
    require_comparable,
)
from imatrix_lab.stats import sentences
from imatrix_lab.stats.comparison import Comparison
from imatrix_lab.stats.metrics import METRICS
from imatrix_lab.stats.paired import Sums


@dataclass(frozen=True)
class Report:
    """Everything that was compared.

    Attributes
    ----------
    size_gaps : pairs of files that are not of one size, to be told first.
    contrasts : of types with one calibration, as planned.
    refused : pairs of types that were not compared, since their files are not of one size.
    type_interactions : whether a calibration changes one type more than another.
    signatures : of the runs, by their file.
    notes : what a reader must know about all of it.
    """

    comparisons: tuple[Comparison, ...]
    interactions: tuple[Interaction, ...]
    controls: tuple[Control, ...]
    signatures: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    size_gaps: tuple[SizeGap, ...] = ()
    contrasts: tuple[Comparison, ...] = ()
    refused: tuple[SizeGap, ...] = ()
    type_interactions: tuple[TypeInteraction, ...] = ()


def report_as_json(report: Report) -> dict[str, Any]:
    """Return a report as JSON values; what is unknown or unbounded is not finite."""
    return {
        "size_gaps": [dataclasses.asdict(gap) for gap in report.size_gaps],
        "comparisons": [_comparison(c) for c in report.comparisons],
        "interactions": [_interaction(x) for x in report.interactions],
        "controls": [dataclasses.asdict(c) for c in report.controls],
        "notes": report.notes,
        "signatures": report.signatures,
    }


def _comparison(c: Comparison) -> dict[str, Any]:
    fields = dataclasses.asdict(c)
    question, detail = fields.pop("question"), fields.pop("paired")
    metric = question.pop("metric")
    interval = detail.pop("interval")
    fields["ci95_low"], fields["ci95_high"] = fields.pop("low"), fields.pop("high")
    ratio = {}
    if metric["key"] == "nll_nats":
        ends = (c.estimate, c.low, c.high)
        names = ("perplexity_ratio", "perplexity_ratio_ci95_low", "perplexity_ratio_ci95_high")
        ratio = {n: math.exp(min(e, 700.0)) for n, e in zip(names, ends, strict=True)}
    return {
        **question,
        "metric": metric["key"],
        "verdict": c.verdict(),
        "plain": sentences.plain(c),
        "formal": sentences.formal(c),
        **ratio,
        **fields,
        "p_adjusted": c.p_adjusted(),
        "documents_only": {**detail, **interval},
    }


def _interaction(x: Interaction) -> dict[str, Any]:
    words = (x.a, x.b, x.type, METRICS[x.metric], x.contrast, x.p_holm)
    return {
        **dataclasses.asdict(x),
        "plain": sentences.plain_interaction(*words),
        "formal": sentences.formal_interaction(*words),
    }


def compare_runs(
    paths: Sequence[Path | Run], plan: ComparisonPlan, metrics: Sequence[str], progress: Progress
) -> Report:
    """Compare two runs, or the runs of a planned family.

    Parameters
    ----------
    paths : files of records, folders of them, or runs; one folder may hold two quants' records.
    metrics : empty for all that are usual for these records.

    Raises UsageError: fewer than two runs, more than two without a family, or files of different
    sizes unless the plan allows that.
    Raises BadRecords: no records, or records that cannot be compared.
    """
    sides = _sides(paths, plan)
    runs = [run for side in sides for run in side]
    kinds = {run.kind for run in runs}
    if len(kinds) > 1:
        raise BadRecords("token records and item records cannot be compared", where=runs[-1].path)
    metrics = tuple(metrics) or DEFAULT_METRICS[kinds.pop()]
    rows: list[Control] = []
    if plan.family:
        runs, twins = controls.split_toolchains(runs)
        rows += [row for a, b in twins for row in controls.of_toolchains(a, b, metrics)]
    pairs: list[tuple[Comparison, dict[str, float]]] = []
    corners: list[Corner] = []
    notes: list[str] = []
    size_gaps: list[SizeGap] = []
    refused: list[SizeGap] = []
    of_types: list[tuple[Comparison, dict[str, float]]] = []
    types: dict[tuple[str, str], None] = {}
    with progress.task("compare", float(len(runs)), "") as task:
        done = 0
        for group in _by_text(runs):
            for block in blocks(group, metrics):
                comparer = TextComparer(block, group, plan)
                if plan.family:
                    levels = design.levels(group, block.text)
                    on_text = controls.of_text(comparer, levels, metrics)
                else:
                    levels, on_text = _two_levels(comparer, sides), []
                planned = _planned(levels, plan)
                size_gaps += sizes.gaps(planned, group)
                if not plan.any_size:
                    sizes.require_one_size(size_gaps)
                pairs += _pairs(comparer, planned, metrics, on_text)
                rows += on_text
                across = design.type_pairs(levels, plan)
                apart = {(gap.a, gap.b): gap for gap in sizes.gaps(across, group)}
                refused += apart.values()
                fitting = [(a, b) for a, b in across if (a.name(), b.name()) not in apart]
                types |= dict.fromkeys((a.type, b.type) for a, b in fitting)
                of_types += _pairs(comparer, fitting, metrics, on_text)
                corners += [(comparer, level) for level in levels]
                if n := block.n_unmatched:
                    notes.append(f"{block.title()}: {n:,} items that not every run has, left out")
            done += len(group)
            task.update(float(done))
    every = [*pairs, *of_types]
    if not every:
        raise _nothing_to_compare(runs, plan)
    has_interactions = plan.family[:1] == ("calib",) and "lang" in plan.family
    comparisons, crossed = adjust.adjusted(
        [c for c, _ in every],
        [totals for _, totals in every],
        list(interactions(corners, metrics)) if has_interactions else [],
        plan,
    )
    signatures = {str(run.path): run.signature for run in runs}
    distinct = tuple(dict.fromkeys(size_gaps))
    return Report(
        tuple(comparisons[: len(pairs)]),
        tuple(crossed),
        tuple(rows),
        signatures,
        tuple(notes),
        distinct,
        tuple(comparisons[len(pairs) :]),
        tuple(dict.fromkeys(refused)),
        tuple(adjust.holm_of([*type_interactions(corners, metrics, types, plan.reference)])),
    )


def _sides(paths: Sequence[Path | Run], plan: ComparisonPlan) -> list[list[Run]]:
    """Return the runs of two files or folders, or two quants in one; each run of a family alone."""
    sides = [find(path) if isinstance(path, Path) else [path] for path in paths]
    if plan.family:
        sides = [[run] for side in sides for run in side]
    elif len(sides) == 1:
        quants: dict[str, list[Run]] = {}
        for run in sides[0]:
            quants.setdefault(run.signature["quant"]["sha256"], []).append(run)
        sides = list(quants.values())
    if len(sides) < 2:
        raise UsageError("need at least two runs to compare", fix="name another file or folder")
    if len(sides) > 2 and not plan.family:
        raise UsageError(
            f"{len(sides)} runs: comparing more than two needs a plan",
            fix="--family calibxlangxtype",
        )
    if not plan.family:
        _require_two_quants(*sides)
    return sides


def _require_two_quants(side_a: Sequence[Run], side_b: Sequence[Run]) -> None:
    for a, b in itertools.product(side_a, side_b):
        is_one_quant = a.signature["quant"]["sha256"] == b.signature["quant"]["sha256"]
        if is_one_quant and (a.text, a.kind) == (b.text, b.kind) and not differing(a, b):
            what = f"{a.path} and {b.path} are one run: {a.name()} on {a.title()}"
            raise UsageError(what, where=b.path, fix="name the records of another quant")


def _nothing_to_compare(runs: Sequence[Run], plan: ComparisonPlan) -> BadRecords:
    """Return the error that says on which texts the runs are, or in what else they differ."""
    by_text: dict[str, list[str]] = {}
    for run in runs:
        by_text.setdefault(run.title(), []).append(run.name())
    if not plan.family and len(by_text) == 1:
        require_comparable(runs)  # raises, with the field
    on = "; ".join(f"on {text} {', '.join(names)}" for text, names in by_text.items())
    wanted = f"are on one text and differ in {plan.family[0]} alone" if plan.family else (
        "are on one text"
    )  # fmt: skip
    fix = "name runs of the same text"
    fix += " that differ in one factor alone, or choose another --family" if plan.family else ""
    return BadRecords(f"nothing to compare: no two of these runs {wanted}: {on}", fix=fix)


def _by_text(runs: Sequence[Run]) -> list[dict[int, Run]]:
    """Return runs on the same text, or of the same task, by their place in the list."""
    groups: dict[str, dict[int, Run]] = {}
    for i, run in enumerate(runs):
        key = run.text if run.kind == "token" else str(run.signature.get("task"))
        groups.setdefault(key, {})[i] = run
    return list(groups.values())


def _two_levels(comparer: TextComparer, sides: Sequence[Sequence[Run]]) -> list[Level]:
    """Return a level for each side that has a run on this text."""
    levels = []
    for side in sides:
        members = [(i, run) for i, run in comparer.runs.items() if run in side]
        if len(members) > 1:
            raise UsageError(
                f"{len(members)} runs on {comparer.block.title()} in one folder",
                fix="name two files, or plan a family: --family calibxlangxtype",
            )
        levels += [Level(run.calib, run.type, comparer.block.text, (i,)) for i, run in members]
    if len(levels) == 2 and levels[0].name() == levels[1].name():
        return [replace(x, label=comparer.runs[x.runs[0]].path.stem) for x in levels]
    return levels


def _planned(levels: Sequence[Level], plan: ComparisonPlan) -> list[tuple[Level, Level]]:
    return design.pairs(levels, plan) if plan.family else [*itertools.combinations(levels, 2)]


def _pairs(
    comparer: TextComparer, planned: Sequence[tuple[Level, Level]], metrics: Sequence[str],
    on_text: Sequence[Control],
) -> Iterator[tuple[Comparison, dict[str, float]]]:  # fmt: skip
    """Yield what is compared on one text, with the sum of differences of each document."""
    plan, block = comparer.plan, comparer.block
    for a, b in planned:
        family = design.family_of(a, b, block.task, plan) if plan.family else ""
        for metric in metrics:
            c = replace(comparer.compare(a, b, metric), family=family)
            difference = comparer.difference(a, b, metric)
            totals = Sums.of_finite(difference, block.codes, len(block.names)).totals.tolist()
            yield (
                controls.with_noise(c, on_text, a, b),
                dict(zip(block.names, totals, strict=True)),
            )
