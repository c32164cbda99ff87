"""Local files of rows: JSON, JSON lines, TSV, CSV, Parquet, and texts side by side."""

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from imatrix_lab.corpus import tables
from imatrix_lab.errors import BadText

Row = dict[str, Any]
FILE_BYTES_MAX = 2 << 30
"""Benchmarks are small; a larger file is not one."""
_MEND = "mend the file: every row has the same columns"


def beside(columns: list[str], paths: list[Path]) -> Iterator[Row]:
    """Yield rows of texts whose lines belong together; `BadText` if their numbers differ."""
    texts = [_lines(path) for path in paths]
    if len(set(map(len, texts))) > 1:
        counts = ", ".join(f"{p.name} {len(t)}" for p, t in zip(paths, texts, strict=True))
        raise BadText(f"these files have different numbers of lines: {counts}", where=paths[0])
    for lines in zip(*texts, strict=True):
        yield dict(zip(columns, lines, strict=True))


def table(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    """Return the rows of a file; `columns` name those of a TSV or CSV file without a header.

    Every row has every column: None where it lacks one.
    """
    _check_size(path)
    numbered = list(tables.rows(path, names=columns))
    if not numbered:
        raise BadText(f"{path.name} has no rows", where=path, fix="another file")
    for number, row in numbered:
        if not isinstance(row, dict) or None in row:
            problem = "more cells than columns" if isinstance(row, dict) else "no columns"
            raise BadText(f"row {number} of {path.name} has {problem}", where=path, fix=_MEND)
    rows = [row for _, row in numbered]
    names = tables.columns_of(rows)
    try:
        return [plain({name: row.get(name) for name in names}) for row in rows]
    except RecursionError as error:
        raise BadText(f"values of {path.name} are nested too deeply", where=path) from error


def plain(value: Any) -> Any:
    """Return text that UTF-8 can hold, and the dates that the JSON reader makes as text again."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    return value


def _lines(path: Path) -> list[str]:
    """Return lines of a file; U+2028 and its like end none."""
    return decoded(path).removesuffix("\n").split("\n")


def decoded(path: Path) -> str:
    """Return a file's text; `BadText` if it is not UTF-8."""
    _check_size(path)
    return "".join(tables.plain_text(path))


def _check_size(path: Path) -> None:
    if path.stat().st_size > FILE_BYTES_MAX:
        raise BadText("this file is too large for a benchmark", where=path)
