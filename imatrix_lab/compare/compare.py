"""Runs in, judgements out: the whole of `imatrix-lab compare` in one function."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imatrix_lab.compare import adjust, controls, design
from imatrix_lab.compare import interactions as crossed
from imatrix_lab.compare.comparer import TextComparer
from imatrix_lab.compare.controls import Control
from imatrix_lab.compare.design import Level, Plan
from imatrix_lab.compare.interactions import Corner, Interaction
from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.records.runs import DEFAULT_METRICS, Block, Run, blocks, find
from imatrix_lab.stats import sentences
from imatrix_lab.stats.comparison import METRICS, Comparison


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as JSON values; what is unknown or unbounded is null."""
    found: dict[str, Any] = plain(
        {
            "comparisons": [_comparison(c) for c in report.comparisons],
            "interactions": [_interaction(x) for x in report.interactions],
            "controls": [dataclasses.asdict(c) for c in report.controls],
            "notes": report.notes,
            "signatures": report.signatures,
        }
    )
    return found


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
    metric = METRICS[x.metric]
    return {
        **dataclasses.asdict(x),
        "plain": sentences.plain_interaction(x.a, x.b, x.type, metric, x.contrast, x.p_holm),
        "formal": sentences.formal_interaction(x.a, x.b, x.type, metric, x.contrast, x.p_holm),
    }


def plain(value: Any) -> Any:
    """Return a value without what JSON does not have: NaN, infinity, tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


@dataclass(frozen=True)
class Report:
    """Everything that was asked, and what the data say.

    Attributes
    ----------
    signatures : of the runs, by their file.
    notes : what a reader must know about all of it.
    """

    comparisons: tuple[Comparison, ...]
    interactions: tuple[Interaction, ...]
    controls: tuple[Control, ...]
    signatures: dict[str, dict[str, Any]]
    notes: tuple[str, ...]


def compare(
    paths: Sequence[Path], plan: Plan, metrics: Sequence[str], progress: Progress
) -> Report:
    """Compare two runs, or the runs of a planned family.

    Parameters
    ----------
    paths : files of records, or folders of them; one folder may hold two quants' records.
    metrics : empty for all that are usual for these records.

    Raises
    ------
    UsageError : fewer than two runs, or more than two without a family.
    BadRecords : see `runs.find` and `runs.blocks`.
    """
    if plan.family:
        every = [run for path in paths for run in find(path)]
        sides = [0] * len(every)
    else:
        every, sides = _two_sides(paths)
    if len(every) < 2:
        raise UsageError("one run alone has nothing to be compared with")
    kinds = {run.kind for run in every}
    if len(kinds) > 1:
        raise BadRecords("token records and item records cannot be compared", where=paths[-1])
    metrics = tuple(metrics) or DEFAULT_METRICS[kinds.pop()]
    place = {run.path: side for run, side in zip(every, sides, strict=True)}
    if plan.family:
        every, twins = controls.split_toolchains(every)
    else:
        twins = []
    return _report(every, place, twins, plan, metrics, progress)


def _two_sides(paths: Sequence[Path]) -> tuple[list[Run], list[int]]:
    """Return the runs of two files or folders, or of the two quants in one folder, and whose."""
    found = [find(path) for path in paths]
    if len(found) == 1:
        quants: dict[str, list[Run]] = {}
        for run in found[0]:
            quants.setdefault(run.signature["quant"]["sha256"], []).append(run)
        found = list(quants.values())
    if len(found) != 2:
        raise UsageError(
            f"{len(found)} runs: two are compared as they are, more need a plan",
            fix="--family calibxlangxtype",
        )
    every = [run for side in found for run in side]
    return every, [i for i, side in enumerate(found) for _ in side]


def _report(
    every: Sequence[Run],
    place: dict[Path, int],
    twins: Sequence[tuple[Run, Run]],
    plan: Plan,
    metrics: Sequence[str],
    progress: Progress,
) -> Report:
    comparisons: list[Comparison] = []
    totals: list[dict[str, float]] = []
    rows = [row for a, b in twins for row in controls.of_toolchains(a, b, metrics)]
    corners: list[Corner] = []
    notes: list[str] = []
    groups = _by_text(every)
    with progress.task("compare", float(len(every)), "") as task:
        done = 0
        for members in groups:
            runs = {i: every[i] for i in members}
            for block in blocks(runs, metrics):
                comparer = TextComparer(block, runs, plan)
                found = _levels(comparer, place, plan)
                controlled = controls.of_text(comparer, found, metrics) if plan.family else []
                rows += controlled
                for a, b in _pairs(found, plan):
                    for metric in metrics:
                        one = comparer.compare(a, b, metric)
                        family = design.family_of(a, block.task, plan) if plan.family else ""
                        one = controls.with_noise(replace(one, family=family), controlled, a, b)
                        comparisons.append(one)
                        totals.append(comparer.document_totals(a, b, metric))
                corners += [Corner(comparer, x) for x in found]
                notes += _notes(block)
            done += len(members)
            task.update(float(done))
    if not comparisons:
        raise BadRecords(
            "nothing to compare: no two of these runs are on one text and differ as planned",
            fix="name runs of the same text; check --family",
        )
    planned = plan.family[:1] == ("calib",) and "lang" in plan.family
    both = crossed.interactions(corners, metrics) if planned else []
    comparisons, both = adjust.adjusted(comparisons, totals, both, plan)
    return Report(
        tuple(comparisons),
        tuple(both),
        tuple(rows),
        {str(run.path): run.signature for run in every},
        tuple(notes),
    )


def _by_text(every: Sequence[Run]) -> list[list[int]]:
    """Return the places of runs on the same text, or of the same task."""
    found: dict[str, list[int]] = {}
    for i, run in enumerate(every):
        key = run.text if run.kind == "token" else str(run.signature.get("task"))
        found.setdefault(key, []).append(i)
    return list(found.values())


def _levels(comparer: TextComparer, place: dict[Path, int], plan: Plan) -> list[Level]:
    """Return the levels on one text: of the design, or the two sides."""
    if plan.family:
        return design.levels(comparer.runs, comparer.block.text)
    found = []
    for side in (0, 1):
        members = [i for i, run in comparer.runs.items() if place[run.path] == side]
        if len(members) > 1:
            raise UsageError(
                f"{len(members)} runs on {comparer.block.title()} in one folder",
                fix="name two files, or plan a family: --family calibxlangxtype",
            )
        for i in members:
            run = comparer.runs[i]
            found.append(Level(run.calib, run.type, comparer.block.text, (i,)))
    if len(found) == 2 and found[0].name() == found[1].name():
        return [replace(x, label=comparer.runs[x.runs[0]].path.stem) for x in found]
    return found


def _pairs(found: Sequence[Level], plan: Plan) -> list[tuple[Level, Level]]:
    if plan.family:
        return design.pairs(found, plan)
    return [(found[0], found[1])] if len(found) == 2 else []


def _notes(block: Block) -> list[str]:
    if not block.n_unmatched:
        return []
    return [f"{block.title()}: {block.n_unmatched:,} items that not every run has were left out"]
