"""Items that two calibrations answer differently, side by side."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from imatrix_lab.core import format
from imatrix_lab.report import text
from imatrix_lab.report.blocks import Block, Flips, Section, Table
from imatrix_lab.report.cells import Cell, row
from imatrix_lab.report.lookup import View
from imatrix_lab.report.results import Flip

EACH_MAX, ALL_MAX = 6, 90
"""Flips on the page: of one comparison, and in all."""
CHARS_MAX = {"item_id": 80, "prompt": 1200, "gold": 800, "output_a": 800, "output_b": 800}


def flips(view: View) -> Section | None:
    """Return how many answers change with the calibration, and some of them."""
    results = view.results
    groups: dict[tuple[str, ...], list[Flip]] = {}
    for f in results.flips:
        groups.setdefault((f.model, f.task, f.language, f.type, f.a, f.b), []).append(f)
    rows = []
    for c in results.flip_counts:
        counts = (Cell(f"{n:,}", n) for n in (c.n_items, c.n_gained, c.n_lost))
        task = view.of_model(c.model) + c.task
        rows.append(row(task, view.text(c.language), c.type, c.a, c.b, *counts))
    columns = ("task", "language", "type", "A", "B", "items", "gained by A", "lost by A")
    blocks: list[Block] = [Table("How many answers change", columns, rows)] if rows else []
    room = ALL_MAX
    for (model, task, language, quant_type, a, b), group in groups.items():
        n_shown = min(EACH_MAX, room, len(group))
        room -= n_shown
        title = f"{view.of_model(model)}{task}, {view.text(language)}, {quant_type}: {a} and {b}"
        shown = []
        for f in group[:n_shown]:
            short: dict[str, Any] = {n: text.cut(getattr(f, n), k) for n, k in CHARS_MAX.items()}
            shown.append(dataclasses.replace(f, **short))
        blocks.append(Flips(title, shown, len(group) - n_shown))
    words = (
        "Items on which two calibrations of one quant type differ: “gained” are right with A only,"
        " “lost” with B only. A model wrote these answers; they may be wrong, odd or offensive."
    )
    return Section("flips", "Answers that change", [words], blocks) if blocks else None


def right(score: float) -> str:
    """Return what a score says of an answer."""
    return "right" if score == 1 else "wrong" if score == 0 else f"score {format.number(score)}"


def tally(shown: Sequence[Flip], n_more: int) -> str:
    """Return how many flips are shown, and where the others are."""
    more = f"; {n_more:,} more in results.json" if n_more else ""
    return f"{len(shown)} shown{more}"
