"""What a report is made of, before it is HTML or Markdown."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from imatrix_lab.report.cells import Row
from imatrix_lab.report.results import Flip


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first cell names its row. `look` is a CSS class."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    folded: bool = False
    look: str = ""
    note: str = ""

    @functools.cached_property  # it is asked for each cell
    def numeric(self) -> frozenset[int]:
        """Columns of numbers."""
        return frozenset(i for r in self.rows for i, cell in enumerate(r) if cell.sort is not None)


@dataclass(frozen=True)
class Point:
    """A measured value at a place, with its interval."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Series:
    """Points of one colour and mark; joined by a line, if they are steps of something."""

    name: str
    number: int
    points: Sequence[Point]
    joined: bool = True


@dataclass(frozen=True)
class Chart:
    """One small picture of points."""

    caption: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_y: bool = False
    x_range: tuple[float, float] | None = None
    log_x: bool = False
    has_diagonal: bool = False


@dataclass(frozen=True)
class Run:
    """Alike columns of a strip, from `first` to `last`; the level, 0 to 1, is how dark it is."""

    first: int
    last: int
    label: str
    level: float


@dataclass(frozen=True)
class Strips:
    """A strip for each name, cut into runs of alike columns."""

    caption: str
    x_label: str
    rows: Sequence[tuple[str, Sequence[Run]]]
    n_columns: int


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

    caption: str
    x_label: str
    rows: Sequence[ForestRow]
    margin: float
    x_range: tuple[float, float]
    lower_is_better: bool


@dataclass(frozen=True)
class Picture:
    """Small pictures, in groups, and a table of their numbers; verdicts need no `legend`."""

    title: str
    words: str
    groups: Sequence[Sequence[Chart | Forest | Strips]]
    table: Table
    legend: Sequence[tuple[int, str]] = ()
    folded: bool = False


@dataclass(frozen=True)
class Flips:
    """Answers side by side; `n_more` are in the results only."""

    title: str
    shown: Sequence[Flip]
    n_more: int


@dataclass(frozen=True)
class Code:
    """Text to be copied."""

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Statements:
    """Sentences, each with a detail behind it or an empty string."""

    title: str
    pairs: Sequence[tuple[str, str]]
    folded: bool = False


Block = Table | Picture | Flips | Code | Statements


@dataclass(frozen=True)
class Section:
    """A part of the report: paragraphs, then blocks."""

    id: str
    title: str
    words: Sequence[str]
    blocks: Sequence[Block] = ()
