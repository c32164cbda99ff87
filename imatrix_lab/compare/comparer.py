"""Comparisons of the runs on one text."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from imatrix_lab.compare.design import ComparisonPlan, Level
from imatrix_lab.errors import BadRecords
from imatrix_lab.records.runs import Block, Run
from imatrix_lab.stats import comparison, interaction
from imatrix_lab.stats.comparison import Comparison, Question
from imatrix_lab.stats.interaction import Cell
from imatrix_lab.stats.metrics import METRICS


class TextComparer:
    """Compares levels of the design on one text, or in one language of a task."""

    def __init__(self, block: Block, runs: Mapping[int, Run], plan: ComparisonPlan):
        self.block, self.runs, self.plan = block, runs, plan

    def values(self, level: Level, metric: str) -> np.ndarray:
        """Return values, averaged over calibration samples, (n,)."""
        values = [self.block.values[i][metric] for i in level.runs]
        return np.asarray(sum(values[1:], start=values[0]) / len(values))

    def difference(self, a: Level, b: Level, metric: str) -> np.ndarray:
        """Return A minus B, (n,)."""
        return np.asarray(self.values(a, metric) - self.values(b, metric))

    def compare(self, a: Level, b: Level, metric: str) -> Comparison:
        """Return A against B.

        Raises BadRecords: nothing finite, or a single document that is too short.
        """
        counted = ("tokens", "documents") if self.block.windows is not None else (
            "items", "item groups"
        )  # fmt: skip
        title, margin = self.block.title(), self.plan.margins.get(metric)
        question = Question(a.name(), b.name(), title, METRICS[metric], margin, *counted)
        key = f"{a.name()}|{b.name()}|{title}|{metric}"
        try:
            result = comparison.compare(
                question,
                (self.values(a, metric), self.values(b, metric)),
                self.block.codes,
                np.random.default_rng([self.plan.seed, zlib.crc32(key.encode())]),
                self.plan.n_resamples,
                self.block.windows,
            )
        except ValueError as error:
            path = self.runs[a.runs[0]].path
            raise BadRecords(str(error), where=path, fix="score more text") from error
        cells = self.cells(a, metric, 1.0, (a, b)) + self.cells(b, metric, -1.0, (a, b))
        return comparison.with_samples(result, interaction.contrast(cells))

    def cells(self, level: Level, metric: str, weight: float, among: Sequence[Level]) -> list[Cell]:
        """Return the level's samples as cells of a contrast, of what is finite `among` levels."""
        finite = np.logical_and.reduce([np.isfinite(self.values(x, metric)) for x in among])
        codes, n = self.block.codes[finite], len(self.block.names)
        sizes = np.bincount(codes, minlength=n).astype(np.float64)
        names = np.array(self.block.names)
        return [
            Cell(
                weight / len(level.runs),
                self.runs[i].calib if self.runs[i].sample else "",
                self.runs[i].sample,
                np.bincount(codes, self.block.values[i][metric][finite], n),
                sizes,
                names,
            )
            for i in level.runs
        ]
