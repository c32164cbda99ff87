"""Comparisons of runs on one text, each made with everything that is known of it."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from imatrix_lab.compare.design import Level, Plan
from imatrix_lab.errors import BadRecords
from imatrix_lab.records.runs import Block, Run
from imatrix_lab.stats import comparison, interaction, quantiles
from imatrix_lab.stats.comparison import METRICS, Comparison, Question
from imatrix_lab.stats.interaction import Cell

TAIL_SHARES = (0.5, 0.99, 0.999)


class TextComparer:
    """Comparisons on one text; what several of them need is computed once."""

    def __init__(self, block: Block, runs: Mapping[int, Run], plan: Plan):
        self.block, self.runs, self.plan = block, runs, plan
        self._tails: dict[tuple[int, ...], quantiles.Tails] = {}

    def values(self, level: Level, metric: str) -> np.ndarray:
        """Return values, averaged over calibration samples, (n,)."""
        members = [self.block.values[i][metric] for i in level.runs]
        total = members[0]
        for one in members[1:]:
            total = total + one
        return total / len(members) if len(members) > 1 else total

    def compare(self, a: Level, b: Level, metric: str) -> Comparison:
        """Return A against B.

        Raises
        ------
        BadRecords : nothing finite, or one document too short to say anything.
        """
        token = self.block.windows is not None
        question = Question(
            a.name(), b.name(), self.block.title(), METRICS[metric],
            self.plan.margins.get(metric),
            "tokens" if token else "items", "documents" if token else "item groups",
        )  # fmt: skip
        key = f"{a.name()}|{b.name()}|{self.block.title()}|{metric}"
        try:
            found = comparison.compare(
                question,
                (self.values(a, metric), self.values(b, metric)),
                self.block.codes,
                np.random.default_rng([self.plan.seed, zlib.crc32(key.encode())]),
                self.plan.n_resamples,
                self.block.strata,
                self.block.windows,
            )
        except ValueError as error:
            path = self.runs[a.runs[0]].path
            raise BadRecords(str(error), where=path, fix="score more text") from error
        if metric == "kld_nats" and not found.n_excluded and found.n_clusters > 1:
            moved = quantiles.difference(self._drawn(a, metric), self._drawn(b, metric))
            names = [f"p{100 * q:g}" for q in TAIL_SHARES]
            found = replace(found, tails=dict(zip(names, moved, strict=True)))
        both = (a, b)
        cells = [c for x, w in zip(both, (1.0, -1.0), strict=True)
                 for c in self.cells(x, metric, w, both)]  # fmt: skip
        return comparison.with_samples(found, interaction.contrast(cells))

    def _drawn(self, level: Level, metric: str) -> quantiles.Tails:
        """Return tails; every level of this text draws the same documents."""
        if level.runs not in self._tails:
            rng = np.random.default_rng([self.plan.seed, zlib.crc32(self.block.text.encode())])
            self._tails[level.runs] = quantiles.tails(
                self.values(level, metric), self.block.codes, TAIL_SHARES, rng,
                self.plan.n_resamples,
            )  # fmt: skip
        return self._tails[level.runs]

    def cells(self, level: Level, metric: str, weight: float, among: Sequence[Level]) -> list[Cell]:
        """Return the level's samples as cells of a contrast, of what is finite `among` levels."""
        good = np.logical_and.reduce([np.isfinite(self.values(x, metric)) for x in among])
        codes, n = self.block.codes[good], len(self.block.names)
        sizes = np.bincount(codes, minlength=n).astype(np.float64)
        names = np.array(self.block.names)
        return [
            Cell(
                weight / len(level.runs),
                self.runs[i].calib if self.runs[i].sample else "",
                self.runs[i].sample,
                np.bincount(codes, self.block.values[i][metric][good], n),
                sizes,
                names,
            )
            for i in level.runs
        ]

    def document_totals(self, a: Level, b: Level, metric: str) -> dict[str, float]:
        """Return the sum of differences of each document, for max-T."""
        moved = self.values(a, metric) - self.values(b, metric)
        good = np.isfinite(moved)
        totals = np.bincount(self.block.codes[good], moved[good], len(self.block.names))
        return dict(zip(self.block.names, totals.tolist(), strict=True))
