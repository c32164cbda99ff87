"""Calibration language x evaluation language: the contrasts that were planned."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imatrix_lab.compare.comparer import TextComparer
from imatrix_lab.compare.design import Level
from imatrix_lab.records.runs import NO_IMATRIX
from imatrix_lab.stats import interaction
from imatrix_lab.stats.interaction import Contrast

Place = tuple[str, str]
"""Calibration and text."""


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
    log_odds: interaction.LogOdds | None = None
    family: str = ""
    p_holm: float = float("nan")
    q_bh: float = float("nan")


@dataclass(frozen=True)
class Corner:
    """A level on its text, with what an interaction needs of it."""

    comparer: TextComparer
    level: Level


def interactions(corners: Sequence[Corner], metrics: Sequence[str]) -> list[Interaction]:
    """Return the planned contrasts of every two calibrations that are texts too."""
    found = []
    kinds: dict[tuple[str, str], dict[Place, Corner]] = {}
    for corner in corners:
        key = corner.level.type, corner.comparer.block.task
        kinds.setdefault(key, {})[corner.level.calib, corner.level.text] = corner
    for (kind, _), here in kinds.items():
        both = [c for c, text in here if c == text and c != NO_IMATRIX]
        for a, b in itertools.combinations(both, 2):
            signs = {(a, a): 1.0, (b, a): -1.0, (a, b): -1.0, (b, b): 1.0}
            if signs.keys() <= here.keys():
                chosen = {place: here[place] for place in signs}
                found += [_interaction(a, b, kind, m, chosen, signs) for m in metrics]
    return found


def _interaction(
    a: str, b: str, kind: str, metric: str, here: Mapping[Place, Corner],
    signs: Mapping[Place, float],
) -> Interaction:  # fmt: skip
    cells = []
    for (calib, text), sign in signs.items():
        corner = here[calib, text]
        among = [here[c, text].level for c in (a, b)]
        cells += corner.comparer.cells(corner.level, metric, sign, among)
    odds = _log_odds(a, b, here) if metric == "score" else None
    task = here[a, a].comparer.block.task
    return Interaction(a, b, kind, metric, task, interaction.contrast(cells), odds)


def _log_odds(a: str, b: str, here: Mapping[Place, Corner]) -> interaction.LogOdds | None:
    """Return the interaction by GEE where every answer is right or wrong, of single samples."""
    rows: list[np.ndarray] = []
    design: list[tuple[int, int]] = []
    groups: list[str] = []
    for (calib, text), corner in here.items():
        block = corner.comparer.block
        values = corner.comparer.values(corner.level, "score")
        if len(corner.level.runs) > 1 or not np.isin(values, (0, 1)).all():
            return None
        rows.append(values)
        design += [(int(calib == a), int(text == a))] * len(values)
        groups += [block.names[c] for c in block.codes]
    calibration, language = np.array(design).T
    _, clusters = np.unique(groups, return_inverse=True)
    try:
        return interaction.gee(np.concatenate(rows), calibration, language, clusters)
    except ValueError:  # a cell without both kinds of answers has no odds
        return None
