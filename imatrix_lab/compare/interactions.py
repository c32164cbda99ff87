"""Calibration language x evaluation language, or type: the contrasts that were planned."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class TypeInteraction:
    """Does the calibration change files of type A more than those of type B?

    The estimate is (calib - reference, of type A) - (calib - reference, of type B) on a text, in
    the metric's stored unit. `text` empty: the mean over texts, each with the calibration on its
    own language (`calib` is empty). `type_b` empty: the change of type A alone.
    """

    calib: str
    reference: str
    type_a: str
    type_b: str
    text: str
    metric: str
    task: str
    n_texts: int
    contrast: Contrast
    p_holm: float = float("nan")


def type_interactions(
    corners: Sequence[Corner],
    metrics: Sequence[str],
    types: Collection[tuple[str, str]],
    reference: str,
) -> Iterator[TypeInteraction]:
    """Yield what calibrations change beside the reference in each type, and what more in A than B.

    `types`: pairs (A, B). Means over texts come first. Types that were made with the same imatrices
    share their samples, so that what a sample does to both cancels.
    """
    grids: dict[str, dict[tuple[str, str, str], Corner]] = {}
    for comparer, level in corners if types else ():
        grid = grids.setdefault(comparer.block.task, {})
        grid[level.calib, level.type, level.text] = comparer, level
    single = dict.fromkeys(name for pair in types for name in reversed(pair))
    for task, grid in grids.items():
        texts = dict.fromkeys(text for _, _, text in grid)
        calibs = dict.fromkeys(calib for calib, _, _ in grid)
        own = [(text, text) for text in texts]
        alone = [(name, "", "", own) for name in single]
        means = [(a, b, "", own) for a, b in types]
        each = [(a, b, text, [(c, text)]) for a, b in types for text in texts for c in calibs]
        for a, b, text, wanted in (*alone, *means, *each):
            sides = (a, b) if b else (a,)
            places = [
                (calib, on)
                for calib, on in wanted
                if {(c, t, on) for c in (calib, reference) for t in sides} <= grid.keys()
                and calib not in (reference, NO_IMATRIX)
            ]
            for metric in metrics if places else ():
                contrast = _of_types(places, sides, metric, reference, grid)
                calib = places[0][0] if text else ""
                yield TypeInteraction(
                    calib, reference, a, b, text, metric, task, len(places), contrast
                )


def _of_types(
    places: Sequence[tuple[str, str]],
    sides: Sequence[str],
    metric: str,
    reference: str,
    grid: Mapping[tuple[str, str, str], Corner],
) -> Contrast:
    cells = []
    for calib, text in places:
        corners = [
            (*grid[c, t, text], sign_c * sign_t / len(places))
            for c, sign_c in ((calib, 1.0), (reference, -1.0))
            for t, sign_t in zip(sides, (1.0, -1.0), strict=False)
        ]
        levels = [level for _, level, _ in corners]
        for comparer, level, weight in corners:
            cells += comparer.cells(level, metric, weight, levels)
    return interaction.contrast(cells)
