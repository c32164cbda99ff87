"""Foreign text made safe to read."""

import re
from typing import Any

from imatrix_lab.core.format import number

# Controls, overrides of the direction of text, halves of characters: shown, so that nothing that
# a model wrote can hide or turn around what stands beside it. Joiners stay: Indic text needs them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
    "\ufeff\ufffe\uffff]"
)


def visible(value: Any) -> Any:
    """Return text with hidden characters named: ``‹U+202E›``; what is not plain text, as it is."""
    if type(value) is not str:
        return value
    return _HIDDEN.sub(lambda m: f"‹U+{ord(m[0]):04X}›", value)


def cut(text: str, n_chars: int) -> str:
    """Return the beginning of long text, with a note of its length."""
    if len(text) <= n_chars:
        return text
    return f"{text[:n_chars]} … [cut: {len(text):,} characters, whole in results.json]"


def flat(table: Any, at: str = "") -> dict[str, str]:
    """Return nested tables as one: ``{"a.b": "1"}``.

    >>> flat({"a": {"b": 1}, "c": [1, "x"]})
    {'a.b': '1', 'c': '1, x'}
    """
    if isinstance(table, dict):
        parts = (flat(v, f"{at}.{key}" if at else str(key)) for key, v in table.items())
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(table, list | tuple):
        inside = (flat(v)[""] if not isinstance(v, dict) else str(flat(v)) for v in table)
        return {at: ", ".join(inside)}
    if isinstance(table, bool):
        return {at: "yes" if table else "no"}
    if isinstance(table, float):
        return {at: number(table)}
    return {at: "" if table is None else str(table)}
