"""Numbers, sizes and durations as text."""

import math
import re

UNKNOWN = "–"


_MINUS = "\N{MINUS SIGN}"


_SE_IN_INTERVAL = 3.92
"""Standard errors in a 95 % interval."""


def number(value: float, low: float = math.nan, high: float = math.nan, plus: bool = False) -> str:
    """Return a value with as many digits as its 95 % interval justifies: two of its error's.

    Parameters
    ----------
    plus : also positive values show their sign, as differences should.

    >>> number(-0.0863123, -0.0924, -0.0801)
    '−0.0863'
    >>> number(0.123456)
    '0.1235'
    """
    if not math.isfinite(value):
        return UNKNOWN
    width = high - low
    if math.isfinite(width) and width > 0:
        digits = 1 - math.floor(math.log10(width / _SE_IN_INTERVAL))
        text = f"{value:,.{min(max(digits, 0), 8)}f}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if not re.search("[1-9]", text):
        return text.lstrip("-")  # rounded to 0, which has no sign
    sign = "+" if plus and value > 0 else ""
    return sign + text.replace("-", _MINUS)


def interval(low: float, high: float, plus: bool = False) -> str:
    """Return the ends of an interval; empty without one.

    >>> interval(-0.0924, -0.0801)
    '−0.0924 … −0.0801'
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{number(low, low, high, plus)} … {number(high, low, high, plus)}"


def probability(p: float) -> str:
    """Return p as it is printed in papers."""
    if math.isnan(p):
        return UNKNOWN
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def whole(n: int) -> str:
    """Return a count; nothing for 0, which is none."""
    return f"{n:,}" if n else ""


def size(size_bytes: int) -> str:
    """Return bytes in MiB or GiB."""
    if size_bytes < 2**30:
        return f"{size_bytes / 2**20:.1f} MiB"
    return f"{size_bytes / 2**30:.2f} GiB"


def seconds(value_s: float) -> str:
    """Return a time a person reads: 9 s, 4 min 10 s, 2 h 05 min."""
    if not math.isfinite(value_s):
        return UNKNOWN
    total = round(value_s)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"
