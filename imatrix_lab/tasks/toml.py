"""TOML files whose every key is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imatrix_lab.errors import UsageError
from imatrix_lab.typed import nearest

Keys = Mapping[str, tuple[type, bool]]
"""Type of each key, and whether it must be there."""


def check(raw: Mapping[str, Any], keys: Keys, path: Path, table: str = "") -> None:
    """Refuse unknown keys, missing ones, and values of another type.

    Raises
    ------
    UsageError : names the key, and the nearest known one.
    """
    inside = f" in [{table}]" if table else ""
    for key, value in raw.items():
        if key not in keys:
            raise UsageError(f"unknown key {key!r}{inside}{nearest(key, keys)}", where=path)
        kind = keys[key][0]
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise UsageError(f"{key!r}{inside}: {value!r} is not a {kind.__name__}", where=path)
        if isinstance(value, list) and not all(isinstance(word, str) for word in value):
            raise UsageError(f"{key!r}{inside} is not a list of strings", where=path)
    for key, (_, needed) in keys.items():
        if needed and key not in raw:
            raise UsageError(f"missing key {key!r}{inside}", where=path)


def with_tuples(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with tuples for lists, as frozen records have them."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in raw.items()}
