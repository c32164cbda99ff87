"""The cells of a report's tables."""

import math
from dataclasses import dataclass

from imatrix_lab.core import format
from imatrix_lab.report.results import (
    Comparison,
    Control,
    Interaction,
    Preference,
    Score,
    TypeInteraction,
)


@dataclass(frozen=True)
class Cell:
    """A table's cell, with further, smaller lines.

    Numeric columns are sorted by `sort`, NaN last. `mark` has CSS classes: a verdict, ``own`` …
    """

    text: str
    sort: float | None = None
    more: tuple[str, ...] = ()
    mark: str = ""

    def sort_key(self) -> str:
        """Return what a page sorts by; empty for what is unknown."""
        if self.sort is None:
            return self.text
        return "" if math.isnan(self.sort) else repr(self.sort)


Row = tuple[Cell, ...]


def row(*cells: Cell | str) -> Row:
    """Return a table's row; plain text needs no `Cell`."""
    return tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in cells)


def number(value: float, low: float = math.nan, high: float = math.nan) -> Cell:
    """Return a value with the digits that its interval justifies."""
    return Cell(format.number(value, low, high), value)


def interval(
    x: Comparison | Control | Interaction | TypeInteraction | Preference | Score, plus: bool = False
) -> list[Cell]:
    """Return an estimate and the ends of its interval."""
    return [Cell(format.number(v, x.low, x.high, plus), v) for v in (x.estimate, x.low, x.high)]


def count(n: int) -> Cell:
    """Return a count; empty for 0."""
    return Cell(format.count(n), n)


def p_value(p: float) -> Cell:
    """Return a p value."""
    return Cell(format.probability(p), p)


def multiple(times: float) -> Cell:
    """Return how many times as large as the noise a difference is."""
    return Cell(f"{times:.1f}" if math.isfinite(times) else format.UNKNOWN, times)
