"""Items that two calibrations answer differently, side by side."""

import dataclasses
from collections.abc import Sequence

from imatrix_lab.core import format
from imatrix_lab.report import text
from imatrix_lab.report.blocks import Cell, Flips, Section, Table
from imatrix_lab.report.lookup import View
from imatrix_lab.report.results import Flip

EACH_MAX, ALL_MAX = 6, 90
"""Flips on the page: of one comparison, and in all."""
PROMPT_CHARS, ANSWER_CHARS = 1200, 800


def flips(view: View) -> Section | None:
    """Return how many answers change with the calibration, and some of them."""
    found = view.found
    if not (found.flips or found.flip_counts):
        return None
    groups: dict[tuple[str, ...], list[Flip]] = {}
    for f in found.flips:
        groups.setdefault((f.model, f.task, f.language, f.type, f.a, f.b), []).append(f)
    blocks: list[Flips] = []
    room = ALL_MAX
    for (model, task, language, kind, a, b), here in groups.items():
        n_shown = min(EACH_MAX, room, len(here))
        room -= n_shown
        title = f"{view.of_model(model)}{task}, {view.text(language)}, {kind}: {a} and {b}"
        blocks.append(Flips(title, tuple(map(_short, here[:n_shown])), len(here) - n_shown))
    said = (
        "Items on which two calibrations of one type differ: gained are right in A only, lost are"
        " right in B only. A model wrote these answers; they may be wrong, odd or offensive.",
    )
    counts = (_counts(view),) if found.flip_counts else ()
    return Section("flips", "Answers that flip", said, (*counts, *blocks))


def _short(f: Flip) -> Flip:
    return dataclasses.replace(
        f, item_id=text.cut(f.item_id, 80), prompt=text.cut(f.prompt, PROMPT_CHARS),
        gold=text.cut(f.gold, ANSWER_CHARS), output_a=text.cut(f.output_a, ANSWER_CHARS),
        output_b=text.cut(f.output_b, ANSWER_CHARS),
    )  # fmt: skip


def _counts(view: View) -> Table:
    rows = tuple(
        (
            Cell(f"{view.of_model(c.model)}{c.task}"), Cell(view.text(c.language)), Cell(c.type),
            Cell(c.a), Cell(c.b),
            *(Cell(f"{n:,}", n) for n in (c.n_items, c.n_gained, c.n_lost)),
        )
        for c in view.found.flip_counts
    )  # fmt: skip
    columns = ("task", "language", "type", "A", "B", "items", "gained by A", "lost by A")
    return Table("How many answers flip", columns, rows, frozenset((5, 6, 7)))


def right(score: float) -> str:
    """Return what a score says of an answer."""
    return "right" if score == 1 else "wrong" if score == 0 else f"score {format.number(score)}"


def tally(shown: Sequence[Flip], n_more: int) -> str:
    """Return how many flips are here, and where the others are."""
    more = f"; {n_more:,} more in results.json" if n_more else ""
    return f"{len(shown)} shown{more}"
