"""Calibration language x evaluation language: the contrasts that were planned."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from imatrix_lab.compare.comparer import TextComparer
from imatrix_lab.compare.design import Level
from imatrix_lab.records.runs import NO_IMATRIX
from imatrix_lab.stats import interaction
from imatrix_lab.stats.interaction import Contrast


@dataclass(frozen=True)
class Interaction:
    """Does each of two languages gain more from its own calibration than the other does?

    The estimate is (A on A's text - B on A's text) - (A on B's text - B on B's text), in the
    metric's stored unit: below 0 for own language helps, where lower is better. `task` is empty
    for texts.
    """

    a: str
    b: str
    type: str
    metric: str
    task: str
    contrast: Contrast
    family: str = ""
    p_holm: float = float("nan")
    q_bh: float = float("nan")


Corner = tuple[TextComparer, Level]
"""A level on its text, and what computes its values."""


def interactions(corners: Sequence[Corner], metrics: Sequence[str]) -> Iterator[Interaction]:
    """Yield the planned contrasts of every two calibrations that are texts too."""
    grids: dict[tuple[str, str], dict[tuple[str, str], Corner]] = {}
    for comparer, level in corners:
        grid = grids.setdefault((level.type, comparer.block.task), {})
        grid[level.calib, level.text] = comparer, level
    for (quant_type, task), grid in grids.items():
        own = [calib for calib, text in grid if calib == text and calib != NO_IMATRIX]
        for a, b in itertools.combinations(own, 2):
            if {(b, a), (a, b)} <= grid.keys():
                for metric in metrics:
                    contrast = _contrast(a, b, metric, grid)
                    yield Interaction(a, b, quant_type, metric, task, contrast)


def _contrast(a: str, b: str, metric: str, grid: Mapping[tuple[str, str], Corner]) -> Contrast:
    """Return the contrast of a grid of corners by calibration and text."""
    cells = []
    for (calib, text), sign in {(a, a): 1.0, (b, a): -1.0, (a, b): -1.0, (b, b): 1.0}.items():
        comparer, level = grid[calib, text]
        cells += comparer.cells(level, metric, sign, [grid[c, text][1] for c in (a, b)])
    return interaction.contrast(cells)
