"""Local files of rows: JSON, JSON lines, TSV, CSV, Parquet, and texts side by side."""

import csv
import datetime
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from imatrix_lab.errors import BadText

Row = dict[str, Any]
FILE_BYTES_MAX = 2 << 30
"""Benchmarks are small; a larger file is not one."""
_BUILDERS = {".jsonl": "json", ".parquet": "parquet", ".tsv": "csv", ".csv": "csv"}


def beside(columns: list[str], paths: list[Path]) -> Iterator[Row]:
    """Yield rows of texts whose lines belong together; `BadText` if their numbers differ."""
    texts = [_lines(path) for path in paths]
    if len(set(map(len, texts))) > 1:
        counts = ", ".join(f"{p.name} {len(t)}" for p, t in zip(paths, texts, strict=True))
        raise BadText(f"these files have different numbers of lines: {counts}", where=paths[0])
    for lines in zip(*texts, strict=True):
        yield dict(zip(columns, lines, strict=True))


def table(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    """Return the rows of a file; `columns` name those of a TSV or CSV file without a header."""
    import datasets

    _check_size(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _json(path)
    if suffix not in _BUILDERS:
        known = f".json {' '.join(_BUILDERS)}"
        raise BadText(f"{path.name} is none of {known}", where=path, fix="convert it first")
    datasets.disable_progress_bars()
    builder = _BUILDERS[suffix]
    try:
        if builder == "json":
            decoded(path)
        options = _csv(path, columns) if builder == "csv" else {}
        rows = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except (OSError, ValueError, csv.Error, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).splitlines()[0][:300]
        raise BadText(f"{path.name} cannot be read: {reason}", where=path) from error
    return [plain(row) for row in rows.to_list()]


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


def _csv(path: Path, columns: Sequence[str]) -> dict[str, Any]:
    """Return options for reading a table of texts, in which NA and 007 stay as they are."""
    import datasets

    mark = "\t" if path.suffix.lower() == ".tsv" else ","
    quoting: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if mark == "\t" else {}
    head = next(csv.reader(_lines(path), delimiter=mark, **quoting), [])
    names = list(columns or head)
    features = datasets.Features({name: datasets.Value("string") for name in names})
    layout = {"sep": mark, "names": names, "header": None if columns else 0, "features": features}
    return {**layout, "keep_default_na": False, **quoting}


def _json(path: Path) -> list[Row]:
    try:
        raw = json.loads(decoded(path))
    except (ValueError, RecursionError) as error:
        raise BadText(f"{path.name} is not JSON: {error}", where=path) from error
    if isinstance(raw, dict):
        raw = [{"id": key, **row} if isinstance(row, dict) else row for key, row in raw.items()]
    if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
        raise BadText(f"{path.name} is neither a list nor an object of objects", where=path)
    return [plain(row) for row in raw]


def _lines(path: Path) -> list[str]:
    """Return lines of a file; U+2028 and its like end none."""
    return decoded(path).replace("\r\n", "\n").removesuffix("\n").split("\n")


def decoded(path: Path) -> str:
    """Return a file's text; `BadText` if it is not UTF-8."""
    _check_size(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadText(f"{path.name} is not UTF-8: {error.reason}", where=path) from error


def _check_size(path: Path) -> None:
    if path.stat().st_size > FILE_BYTES_MAX:
        raise BadText("this file is too large for a benchmark", where=path)
