"""Rows that say what an effect is to be measured against."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from imatrix_lab.compare.comparer import TextComparer
from imatrix_lab.compare.design import Level, Plan
from imatrix_lab.corpus import mixture
from imatrix_lab.records.runs import NO_IMATRIX, Run, blocks, differing
from imatrix_lab.stats import clustered, paired
from imatrix_lab.stats.comparison import METRICS, Comparison

SAMPLES_OF = "two samples of "
RANDOM = mixture.RANDOM_TOKENS
"""The calibration label of an imatrix from random tokens."""


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
    comparer: TextComparer, found: Sequence[Level], metrics: Sequence[str]
) -> list[Control]:
    """Return the controls among runs on one text."""
    rows = []
    for metric in metrics:
        for level in found:
            runs = [comparer.runs[i] for i in level.runs]
            if metric == "kld_nats" and runs[0].is_reference():
                values = comparer.values(level, metric)
                floor = "0: the floor of the method"
                name = "reference against itself"
                rows.append(_control(comparer, values, name, level.type, metric, floor))
            for i, j in itertools.combinations(level.runs, 2):
                one, other = (replace(level, runs=(k,)) for k in (i, j))
                name = SAMPLES_OF + level.calib
                rows.append(_row(comparer, one, other, metric, name, "the noise to measure by"))
        kinds = dict.fromkeys(x.type for x in found)
        for kind in kinds:
            here = {x.calib: x for x in found if x.type == kind}
            tuned = [c for c in here if c not in (NO_IMATRIX, RANDOM)]
            if not tuned:
                continue
            best = comparer.block.text if comparer.block.text in tuned else tuned[0]
            for control, expected in ((NO_IMATRIX, "worse: a positive control"),
                                      (RANDOM, "worse: text matters")):  # fmt: skip
                if control in here:
                    name = f"{control} against {best}"
                    rows.append(_row(comparer, here[control], here[best], metric, name, expected))
    return _measured(rows)


def _row(
    comparer: TextComparer, a: Level, b: Level, metric: str, name: str, expected: str
) -> Control:
    moved = comparer.values(a, metric) - comparer.values(b, metric)
    return _control(comparer, moved, name, a.type, metric, expected)


def _control(
    comparer: TextComparer, values: np.ndarray, name: str, kind: str, metric: str, expected: str
) -> Control:
    good = np.isfinite(values)
    sums = paired.Sums.of(values[good], comparer.block.codes[good], len(comparer.block.names))
    found = clustered.mean(sums.totals, sums.sizes)
    return Control(
        name, comparer.block.title(), kind, metric, expected, found.estimate, found.std_error,
        found.low, found.high, found.n, found.n_clusters,
    )  # fmt: skip


def noise(
    rows: Sequence[Control], kind: str, metric: str, calibs: Collection[str] | None = None
) -> float:
    """Return by how much two samples differ: root mean square; NaN if unknown.

    Parameters
    ----------
    calibs : calibrations whose samples are meant; None for all.
    """
    names = None if calibs is None else {SAMPLES_OF + calib for calib in calibs}
    found = [
        r.estimate**2
        for r in rows
        if (r.name in names if names is not None else r.name.startswith(SAMPLES_OF))
        and (r.type, r.metric) == (kind, metric)
    ]
    return float((sum(found) / len(found)) ** 0.5) if found else float("nan")


def multiple(estimate: float, unit: float) -> float:
    """Return |estimate| in units of the noise; NaN without one."""
    return abs(estimate) / unit if unit > 0 else float("nan")


def _measured(rows: list[Control]) -> list[Control]:
    return [
        replace(r, noise_multiple=multiple(r.estimate, noise(rows, r.type, r.metric))) for r in rows
    ]


def with_noise(found: Comparison, rows: Sequence[Control], a: Level, b: Level) -> Comparison:
    """Return a comparison with its effect as a multiple of the noise of what it compares."""
    unit = noise(rows, a.type, found.question.metric.key, {a.calib, b.calib})
    return replace(found, noise_multiple=multiple(found.estimate, unit))


def split_toolchains(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Run, Run]]]:
    """Return runs of the first one's toolchain, and pairs of one quant in two toolchains.

    A run of another toolchain is of use only as a control: the same file, scored twice. Any other
    stays where it is, to be refused.
    """
    home = runs[0].signature.get("toolchain")
    ours = [r for r in runs if r.signature.get("toolchain") == home]
    pairs = []
    for run in runs:
        if run.signature.get("toolchain") == home:
            continue
        twins = [r for r in ours if _is_twin(r, run)]
        if twins:
            pairs.append((twins[0], run))
        else:
            ours.append(run)
    return ours, pairs


def _is_twin(a: Run, b: Run) -> bool:
    same = a.signature["quant"]["sha256"] == b.signature["quant"]["sha256"]
    return same and all(f.startswith(("toolchain", "compute")) for f in differing(a, b))


def of_toolchains(a: Run, b: Run, metrics: Sequence[str]) -> list[Control]:
    """Return what the same file scored with two toolchains differs by."""
    fields = ", ".join(f.removeprefix("toolchain.") for f in differing(a, b))
    same = replace(b, signature={**b.signature, "toolchain": a.signature["toolchain"]})
    rows = []
    for block in blocks({0: a, 1: same}, metrics):
        comparer = TextComparer(block, {0: a, 1: same}, Plan())
        one, other = (Level(a.calib, a.type, block.text, (i,)) for i in (0, 1))
        rows += [
            _row(comparer, one, other, m, f"two toolchains ({fields})", "0, were they alike")
            for m in metrics
            if m in METRICS
        ]
    return rows
