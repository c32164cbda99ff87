"""Numbers, byte sizes and durations as text: every number a person reads is printed here."""

import math
import re
from collections.abc import Sequence

UNKNOWN = "–"
_MINUS = "\N{MINUS SIGN}"
_SE_IN_INTERVAL = 3.92
"""Standard errors in a 95 % interval."""


def number(value: float, low: float = math.nan, high: float = math.nan, plus: bool = False) -> str:
    """Return a value with as many digits as its 95 % interval justifies: two of its error's.

    `plus` shows the sign of positive values too, as for differences.

    >>> number(-0.0863123, -0.0924, -0.0801)
    '−0.0863'
    >>> number(0.123456)
    '0.1235'
    """
    return _number(value, (high - low) / _SE_IN_INTERVAL, plus, 4)


def with_error(value: float, std_error: float) -> str:
    """Return a value with two digits of its standard error; six digits where that is unknown.

    >>> with_error(-0.0123456, 0.0011)
    '−0.0123'
    """
    return _number(value, std_error, False, 6)


def _number(value: float, std_error: float, plus: bool, n_digits: int) -> str:
    if not math.isfinite(value):
        return UNKNOWN if math.isnan(value) else "∞" if value > 0 else f"{_MINUS}∞"
    if 0 < std_error < math.inf:
        decimals = 1 - math.floor(math.log10(std_error))
        text = f"{value:,.{min(max(decimals, 0), 8)}f}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 10**n_digits else f"{value:.{n_digits}g}"
    if not re.search("[1-9]", text):
        return text.lstrip("-")  # rounded to 0, which has no sign
    sign = "+" if plus and value > 0 else ""
    return sign + text.replace("-", _MINUS)


def interval(low: float, high: float, plus: bool = False) -> str:
    """Return the ends of an interval, or "" if one is not finite.

    >>> interval(-0.0924, -0.0801)
    '−0.0924 … −0.0801'
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{number(low, low, high, plus)} … {number(high, low, high, plus)}"


def probability(p: float, equals: str = "") -> str:
    """Return p as papers print it: ``< 0.0001``, or `equals` and ``0.0123`` or ``0.50``."""
    if math.isnan(p):
        return UNKNOWN
    return "< 0.0001" if p < 1e-4 else f"{equals}{p:.4f}" if p < 0.1 else f"{equals}{p:.2f}"


def some(names: Sequence[str], shown: int = 3) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def count(n: int) -> str:
    """Return a count, or "" for 0."""
    return f"{n:,}" if n else ""


def size(n_bytes: float) -> str:
    """Return bytes in MiB or GiB.

    >>> size(1_500_000), size(5_000_000_000)
    ('1.43 MiB', '4.66 GiB')
    """
    return f"{n_bytes / 2**20:.2f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:,.2f} GiB"


def size_bytes(text: str) -> int:
    """Return the bytes that a size means, ``20GiB``, ``20 GB``, ``20G`` (GiB); or raise ValueError.

    >>> size_bytes("1.5GiB"), size_bytes("2 GB"), size_bytes("512M"), size_bytes("4096")
    (1610612736, 2000000000, 536870912, 4096)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]?)(i?b)?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise ValueError(f"{text!r} is not a size, such as 20GiB")
    power = " kmgt".index(match[2].lower() or " ")
    base = 1000 if (match[3] or "").lower() == "b" else 1024
    return int(float(match[1]) * base**power)


def quantity(n: float, unit: str) -> str:
    """Return an amount with its unit (``B``: bytes): 512 tokens, 2.10 MiB, 268M weights."""
    if unit == "B":
        return size(n)
    for limit, divisor, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e5, 1e3, "k")):
        if n >= limit:
            return f"{n / divisor:.3g}{suffix} {unit}"
    return f"{n:,.0f} {unit}"


def duration(seconds: float) -> str:
    """Return a time: 9 s, 4 min 10 s, 2 h 05 min."""
    if not math.isfinite(seconds):
        return UNKNOWN
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def rate(per_s: float, left_s: float, unit: str) -> str:
    """Return a speed and the time left, e.g. ``138 tokens/s, 2 min 05 s left``.

    Nothing while the time is not known (NaN); the time alone for a unit that is "".
    """
    if math.isnan(left_s):
        return ""
    slow = per_s < 1 and unit != "B"
    speed = f"{per_s:.2f} {unit}/s" if slow else f"{quantity(per_s, unit)}/s"
    parts = (speed if unit else "", f"{duration(left_s)} left" if left_s else "")
    return ", ".join(filter(None, parts))
