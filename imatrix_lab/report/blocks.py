"""What a report is made of, before it is HTML or Markdown."""

import math
from dataclasses import dataclass
from typing import ClassVar

from imatrix_lab.report.results import Flip


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Attributes
    ----------
    sort : what the column is sorted by, where it is not the text; NaN comes last.
    more : further, smaller lines.
    mark : classes of its look: a verdict, ``own`` …
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


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first cell of a row names it.

    Attributes
    ----------
    numeric : which columns hold numbers.
    folded : closed until a reader opens it.
    look : class of its look: ``matrix``, ``heat``, ``signatures``; empty for a plain one.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int] = frozenset()
    folded: bool = False
    look: str = ""
    note: str = ""


@dataclass(frozen=True)
class Point:
    """A measured value at a place, with its interval."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """Points of one colour and mark; joined by a line, if they are steps of something."""

    name: str
    number: int
    points: tuple[Point, ...]
    joined: bool = True


@dataclass(frozen=True)
class Chart:
    """One small picture of points."""

    kind: ClassVar[str] = "chart"
    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_y: bool = False
    x_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class ForestRow:
    """A difference with its interval; `noise` is the half-width of its band."""

    label: str
    estimate: float
    low: float
    high: float
    verdict: str
    noise: float
    is_own: bool


@dataclass(frozen=True)
class Forest:
    """Paired differences on one text at one type."""

    kind: ClassVar[str] = "forest"
    caption: str
    x_label: str
    rows: tuple[ForestRow, ...]
    margin: float
    x_range: tuple[float, float]
    lower_is_better: bool


@dataclass(frozen=True)
class Picture:
    """Small pictures in groups, and the table with the same numbers.

    Attributes
    ----------
    title : empty where that of the section says it.
    table : closed; it stands below.
    legend : names by number of series; verdicts have a legend of their own.
    """

    kind: ClassVar[str] = "picture"
    title: str
    words: str
    groups: tuple[tuple[Chart | Forest, ...], ...]
    table: Table
    legend: tuple[tuple[int, str], ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Flips:
    """Answers side by side; `n_more` are in the results only."""

    kind: ClassVar[str] = "flips"
    title: str
    shown: tuple[Flip, ...]
    n_more: int


@dataclass(frozen=True)
class Code:
    """Text to be copied as it stands."""

    kind: ClassVar[str] = "code"
    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Sayings:
    """Statements, each with the detail behind it, if there is any."""

    kind: ClassVar[str] = "sayings"
    title: str
    pairs: tuple[tuple[str, str], ...]
    folded: bool = False


Block = Table | Picture | Flips | Code | Sayings


@dataclass(frozen=True)
class Section:
    """A part of the report with paragraphs and what they speak of."""

    id: str
    title: str
    words: tuple[str, ...]
    blocks: tuple[Block, ...] = ()
