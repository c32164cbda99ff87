"""Rows with a known answer, and the noise that effects are measured against."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from imatrix_lab.compare.comparer import TextComparer
from imatrix_lab.compare.design import ComparisonPlan, Level
from imatrix_lab.corpus import mixture
from imatrix_lab.records.runs import NO_IMATRIX, Run, blocks, differing
from imatrix_lab.stats import clustered
from imatrix_lab.stats.comparison import Comparison
from imatrix_lab.stats.paired import Sums

SAMPLES_OF = "two samples of "
RANDOM = mixture.RANDOM_TOKENS
"""The calibration label of an imatrix from random tokens."""
EXPECTED = {NO_IMATRIX: "worse: a positive control", RANDOM: "worse: text matters"}


@dataclass(frozen=True)
class Control:
    """A row with a known answer.

    Attributes
    ----------
    name : what was compared with what.
    expected : what the estimate should be.
    estimate, std_error, low, high : a mean or a mean difference, in the metric's stored unit.
    """

    name: str
    text: str
    type: str
    metric: str
    expected: str
    estimate: float
    std_error: float
    low: float
    high: float
    n: int
    n_clusters: int
    noise_multiple: float = float("nan")


def of_text(
    comparer: TextComparer, levels: Sequence[Level], metrics: Sequence[str]
) -> list[Control]:
    """Return the controls among runs on one text."""
    rows = []
    for metric in metrics:
        for level in levels:
            if metric == "kld_nats" and comparer.runs[level.runs[0]].is_reference():
                values = comparer.values(level, metric)
                floor = "0: the floor of the method"
                name = "reference against itself"
                rows.append(_control(comparer, values, name, level.type, metric, floor))
            for i, j in itertools.combinations(level.runs, 2):
                pair = replace(level, runs=(i,)), replace(level, runs=(j,))
                name = SAMPLES_OF + level.calib
                rows.append(_difference(comparer, *pair, metric, name, "the noise to measure by"))
        for quant_type in dict.fromkeys(x.type for x in levels):
            by_calib = {x.calib: x for x in levels if x.type == quant_type}
            tuned = [c for c in by_calib if c not in EXPECTED]
            if not tuned:
                continue
            best = comparer.block.text if comparer.block.text in tuned else tuned[0]
            for calib, expected in EXPECTED.items():
                if calib in by_calib:
                    pair, name = (by_calib[calib], by_calib[best]), f"{calib} against {best}"
                    rows.append(_difference(comparer, *pair, metric, name, expected))
    return [
        replace(r, noise_multiple=multiple(r.estimate, noise(rows, r.type, r.metric))) for r in rows
    ]


def _difference(
    comparer: TextComparer, a: Level, b: Level, metric: str, name: str, expected: str
) -> Control:
    values = comparer.difference(a, b, metric)
    return _control(comparer, values, name, a.type, metric, expected)


def _control(
    comparer: TextComparer, values: np.ndarray, name: str, quant_type: str, metric: str,
    expected: str,
) -> Control:  # fmt: skip
    sums = Sums.of_finite(values, comparer.block.codes, len(comparer.block.names))
    mean = clustered.mean(sums.totals, sums.sizes)
    return Control(
        name, comparer.block.title(), quant_type, metric, expected, mean.estimate, mean.std_error,
        mean.low, mean.high, mean.n, mean.n_clusters,
    )  # fmt: skip


def noise(
    rows: Sequence[Control], quant_type: str, metric: str, calibs: Collection[str] | None = None
) -> float:
    """Return by how much two samples differ: root mean square; NaN if unknown.

    `calibs`: only samples of these calibrations; None for all.
    """
    squares = [
        r.estimate**2
        for r in rows
        if r.name.startswith(SAMPLES_OF)
        and (calibs is None or r.name.removeprefix(SAMPLES_OF) in calibs)
        and (r.type, r.metric) == (quant_type, metric)
    ]
    return float((sum(squares) / len(squares)) ** 0.5) if squares else float("nan")


def multiple(estimate: float, unit: float) -> float:
    """Return |estimate| in units of the noise; NaN without one."""
    return abs(estimate) / unit if unit > 0 else float("nan")


def with_noise(c: Comparison, rows: Sequence[Control], a: Level, b: Level) -> Comparison:
    """Return a comparison with its effect as a multiple of the noise of what it compares."""
    unit = noise(rows, a.type, c.question.metric.key, {a.calib, b.calib})
    return replace(c, noise_multiple=multiple(c.estimate, unit))


def split_toolchains(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Run, Run]]]:
    """Return runs of the first one's toolchain, and pairs of one quant in two toolchains.

    A run of another toolchain is of use only as a control: the same file, scored twice. Any other
    stays in the list, and is refused later.
    """
    toolchain = runs[0].signature.get("toolchain")
    kept = [r for r in runs if r.signature.get("toolchain") == toolchain]
    pairs = []
    for run in runs:
        if run.signature.get("toolchain") == toolchain:
            continue
        if twin := next((r for r in kept if _is_twin(r, run)), None):
            pairs.append((twin, run))
        else:
            kept.append(run)
    return kept, pairs


def _is_twin(a: Run, b: Run) -> bool:
    same = a.signature["quant"]["sha256"] == b.signature["quant"]["sha256"]
    return same and all(f.startswith(("toolchain", "compute")) for f in differing(a, b))


def of_toolchains(a: Run, b: Run, metrics: Sequence[str]) -> list[Control]:
    """Return how much the same file scored with two toolchains differs."""
    fields = ", ".join(f.removeprefix("toolchain.") for f in differing(a, b))
    same = replace(b, signature={**b.signature, "toolchain": a.signature["toolchain"]})
    rows = []
    for block in blocks({0: a, 1: same}, metrics):
        comparer = TextComparer(block, {0: a, 1: same}, ComparisonPlan())
        first, second = (Level(a.calib, a.type, block.text, (i,)) for i in (0, 1))
        name, expected = f"two toolchains ({fields})", "0, were they alike"
        rows += [_difference(comparer, first, second, m, name, expected) for m in metrics]
    return rows
