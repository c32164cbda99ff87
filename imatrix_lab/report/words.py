"""Numbers and foreign text as a reader sees them."""

from __future__ import annotations

import math
import re
from typing import Any

UNKNOWN = "–"
_MINUS = "\N{MINUS SIGN}"
_SE_IN_INTERVAL = 3.92
"""Standard errors in a 95 % interval."""

# Controls, overrides of the direction of text, halves of characters: shown, so that nothing that
# a model wrote can hide or turn around what stands beside it. Joiners stay: Indic text needs them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
    "\ufeff\ufffe\uffff]"
)


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


def visible(value: Any) -> Any:
    """Return text with what is hidden in it named: ``‹U+202E›``; other values as they are.

    Text that is marked as safe is ours, and stays the same object.
    """
    if type(value) is not str:
        return value
    return _HIDDEN.sub(lambda found: f"‹U+{ord(found[0]):04X}›", value)


def cut(text: str, n_chars: int) -> str:
    """Return the beginning of long text, with a note of how much there was."""
    if len(text) <= n_chars:
        return text
    return f"{text[:n_chars]} … [cut: {len(text):,} characters, whole in results.json]"


def flat(table: Any, at: str = "") -> dict[str, str]:
    """Return nested tables as one: ``{"a.b": "1"}``.

    >>> flat({"a": {"b": 1}, "c": [1, "x"]})
    {'a.b': '1', 'c': '1, x'}
    """
    if isinstance(table, dict):
        found: dict[str, str] = {}
        for key, value in table.items():
            found |= flat(value, f"{at}.{key}" if at else str(key))
        return found
    if isinstance(table, list | tuple):
        inside = (flat(v)[""] if not isinstance(v, dict) else str(flat(v)) for v in table)
        return {at: ", ".join(inside)}
    if isinstance(table, bool):
        return {at: "yes" if table else "no"}
    if isinstance(table, float):
        return {at: number(table)}
    return {at: "" if table is None else str(table)}
