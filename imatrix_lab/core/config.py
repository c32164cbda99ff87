"""Plain data (TOML, JSON) to frozen dataclasses and back.

Fields may be str, int, float, bool, dataclasses, ``tuple[X, ...]``, ``dict[str, X]`` and
``dict[str, Any]``. A float that is not finite becomes null in JSON, and null is read as NaN.
"""

import dataclasses
import difflib
import math
import sys
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from imatrix_lab.errors import UsageError

Record = TypeVar("Record")
Keys = Mapping[str, tuple[Any, bool]]
"""Type of each key, and whether it is required."""
TEXTS = tuple[str, ...]
TABLE = dict[str, Any]


def check(raw: Any, keys: Keys, where: Path | str, table: str = "") -> None:
    """Raise `UsageError` for unknown keys, missing ones, and values of another type.

    `where` is the file and `table` the table in it, for messages.
    """
    required = [key for key, (_, is_required) in keys.items() if is_required]
    _check_keys(raw, required, keys, where, table)
    for key, value in raw.items():
        _value(keys[key][0], value, where, f"{table}.{key}" if table else key)


def _check_keys(
    raw: Any, required: Iterable[str], known: Iterable[str], where: Path | str, table: str
) -> None:
    inside = f" in [{table}]" if table else ""
    if not isinstance(raw, Mapping):
        raise UsageError(f"{table or 'this'} is not a table of keys and values", where=where)
    for key in raw:
        if key not in known:
            raise UsageError(f"unknown key {key!r}{inside}{nearest(key, known)}", where=where)
    for key in required:
        if key not in raw:
            raise UsageError(f"missing key {key!r}{inside}", where=where)


def read_toml(path: Path) -> dict[str, Any]:
    """Return a file's table; raise `UsageError` if it is missing, not UTF-8 or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=path) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            "not UTF-8, as TOML must be", where=path, fix="save it as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not valid TOML: {error}", where=path) from error


def build(cls: type[Record], raw: Any, where: Path | str, at: str = "") -> Record:
    """Return a record of a table, or raise `UsageError` as `check` does.

    Fields without a default are required.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    no = dataclasses.MISSING
    required = [n for n, f in fields.items() if f.default is no and f.default_factory is no]
    _check_keys(raw, required, fields, where, at)
    hints, prefix = typing.get_type_hints(cls), f"{at}." if at else ""
    return cls(**{k: _value(hints[k], v, where, f"{prefix}{k}") for k, v in raw.items()})


def _value(type_: Any, value: Any, where: Path | str, at: str) -> Any:
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if type_ is Any:
        return value
    if dataclasses.is_dataclass(type_):
        return build(typing.cast(type, type_), value, where, at)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_value(arguments[0], v, where, at) for v in value)
    if origin is dict and isinstance(value, Mapping):
        return {str(k): _value(arguments[1], v, where, f"{at}.{k}") for k, v in value.items()}
    if (scalar := _scalar(type_, value)) is not None:
        return scalar
    raise UsageError(f"{at}: {value!r} is not {in_words(type_)}", where=where)


def _scalar(type_: Any, value: Any) -> Any:
    """Return the value, or None if it is of another type."""
    if type_ is Path:
        return Path(value) if isinstance(value, str) else None
    if type_ is not float:
        return value if type(value) is type_ else None
    if value is None:
        return math.nan
    finite = type(value) in (int, float) and abs(value) <= sys.float_info.max
    return float(value) if finite else None


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def in_words(type_: Any) -> str:
    """Return what a type is called in messages."""
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin is tuple:
        return f"a list, each {in_words(arguments[0])}"
    return f"a table, each {in_words(arguments[1])}" if origin else _WORDS.get(type_, "a table")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of a message: the known word that is nearest, or ""."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; {near[0]!r}?" if near else ""


def plain(value: Any) -> Any:
    """Return a record as JSON values: dataclasses are tables, tuples lists, NaN null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
