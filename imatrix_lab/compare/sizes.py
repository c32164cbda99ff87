"""Files of one size are compared: what a larger file has better may be its size."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from imatrix_lab.compare.design import Level
from imatrix_lab.core import format
from imatrix_lab.errors import UsageError
from imatrix_lab.records.runs import Run

APART_MAX = 0.003
"""How much larger the larger of two files may be, as a share of the smaller."""


@dataclass(frozen=True)
class SizeGap:
    """Two levels of a comparison whose files are not of one size; means of their samples."""

    a: str
    b: str
    bytes_a: float
    bytes_b: float

    def words(self) -> str:
        """Return the gap in a sentence."""
        (small, least), (large, most) = sorted(
            ((self.a, self.bytes_a), (self.b, self.bytes_b)), key=lambda side: side[1]
        )
        sizes = f"{format.size(int(most))}, {format.size(int(least))}"
        return f"{large} is {most / least - 1:.2%} larger than {small} ({sizes})"


def gaps(pairs: Iterable[tuple[Level, Level]], runs: Mapping[int, Run]) -> list[SizeGap]:
    """Return the pairs whose sizes are known and further apart than `APART_MAX`."""
    apart = []
    for a, b in pairs:
        sizes = [[runs[i].size_bytes for i in level.runs] for level in (a, b)]
        if all(map(all, sizes)):
            gap = SizeGap(a.name(), b.name(), *map(fmean, sizes))
            if abs(gap.bytes_a - gap.bytes_b) > APART_MAX * min(gap.bytes_a, gap.bytes_b):
                apart.append(gap)
    return apart


def require_one_size(apart: Iterable[SizeGap]) -> None:
    """Raise UsageError for the first gap."""
    for gap in apart:
        what = f"{gap.words()}: which is better may be a matter of size"
        fix = "compare files of one size, or add --any-size, which says it first"
        raise UsageError(what, fix=fix)
