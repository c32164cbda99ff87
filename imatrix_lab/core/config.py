"""Plain data (TOML, JSON) to frozen dataclasses and back; the dataclass is the only definition.

Understood are str, int, float, bool, dataclasses, ``tuple[X, ...]``, ``dict[str, X]`` and
``dict[str, Any]``. A float that is not finite is null in JSON, and NaN when it is read.
"""

import dataclasses
import difflib
import math
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from imatrix_lab.errors import UsageError

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


Record = TypeVar("Record")


def read_toml(path: Path) -> dict[str, Any]:
    """Return a file's table.

    Raises
    ------
    UsageError : it is not there, not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not valid TOML: {error}", where=path) from error


def build(cls: type[Record], raw: Any, where: Path | str, at: str = "") -> Record:
    """Return a record of a table; fields without a default must be there.

    Parameters
    ----------
    where : the file, for messages.
    at : the table's name in it, for messages.

    Raises
    ------
    UsageError : an unknown key (the nearest known one is named), a missing one, another type.
    """
    inside = f" in [{at}]" if at else ""
    if not isinstance(raw, Mapping):
        raise UsageError(f"{at or 'this'} is no table of keys and values", where=where)
    kinds = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            raise UsageError(f"unknown key {key!r}{inside}{nearest(key, fields)}", where=where)
    values = {
        key: _value(kinds[key], value, where, f"{at}.{key}" if at else key)
        for key, value in raw.items()
    }
    for name, field in fields.items():
        if name not in values and _is_needed(field):
            raise UsageError(f"missing key {name!r}{inside}", where=where)
    return cls(**values)


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(kind: Any, value: Any, where: Path | str, at: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where, at)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_value(arguments[0], v, where, at) for v in value)
    if origin is dict and isinstance(value, Mapping):
        return {str(k): _value(arguments[1], v, where, f"{at}.{k}") for k, v in value.items()}
    if (found := _scalar(kind, value)) is not None:
        return found
    raise UsageError(f"{at}: {value!r} is not {in_words(kind)}", where=where)


def _scalar(kind: Any, value: Any) -> Any:
    """Return a value of a kind, or None if it is not."""
    if kind is Path:
        return Path(value) if isinstance(value, str) else None
    if kind is not float:
        return value if type(value) is kind else None
    if value is None:
        return math.nan
    finite = type(value) in (int, float) and abs(value) <= sys.float_info.max
    return float(value) if finite else None


def in_words(kind: Any) -> str:
    """Return what a type is called where users read it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return f"a list, each {in_words(arguments[0])}"
    if origin is dict:
        return f"a table, each {in_words(arguments[1])}"
    words: dict[Any, str] = {
        str: "a text", int: "a whole number", float: "a number", bool: "true or false"
    }  # fmt: skip
    return words.get(kind, "a table")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that was perhaps meant, as the end of a message."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; {near[0]!r}?" if near else ""


def plain(value: Any) -> Any:
    """Return a record as JSON values: dataclasses are tables, tuples lists, NaN null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping | types.MappingProxyType):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
