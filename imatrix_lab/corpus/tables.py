"""Rows of a file, in whatever format its content shows: JSON lines, JSON, CSV, TSV or Parquet.

A name's ending only decides where the content leaves it open. Text that merely begins like JSON
has no rows. All readers raise `BadText` for a damaged file, and name the line or row.
"""

import csv
import io
import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from imatrix_lab.corpus import opened
from imatrix_lab.corpus.documents import json_lines, lines
from imatrix_lab.errors import BadText

TEXT, JSON_LINES, JSON, TABLE, PARQUET = "text", "JSON lines", "JSON", "CSV", "Parquet"
TEXT_COLUMNS = (
    "text", "content", "body", "document", "article", "raw_content", "sentence",
    "messages", "conversations", "conversation",
)  # fmt: skip
"""Columns that hold a row's text by custom, in order."""
JSON_BYTES_MAX = 1 << 28
"""A JSON object is read whole; larger ones must be JSON lines. Lists are streamed."""

_DECLARED = {
    ".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".json": JSON, ".csv": TABLE, ".tsv": TABLE,
    ".parquet": PARQUET,
}  # fmt: skip
_PARQUET_MAGIC = b"PAR1"
_MARKS = ",;\t|"
_CELL_CHARS_MAX = 1 << 27
_NAME_CHARS_MAX = 64
_BLOCK_CHARS = 1 << 20
_CR_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_OBJECT = re.compile(r"(\[\s*)?\{\s*\"")
_COLUMN = re.compile(r"[\w.-]{1,40}")
_SPACE = re.compile(r"[ \t\r\n]*")


def format_of(path: Path) -> str:
    """Return what a file is by its content: `TEXT`, or a format with rows."""
    start = opened.head(path)
    declared = _DECLARED.get(opened.suffix(path), "")
    if start.startswith(_PARQUET_MAGIC) or (declared == PARQUET and b"\0" in start):
        return PARQUET
    opened.require_text(path, start)
    is_whole = len(start) < opened.HEAD_BYTES
    text = start.decode("utf-8-sig", "replace").lstrip()
    return (
        _json_format(path, text, is_whole, declared)
        or _table_format(text, is_whole)
        or (declared or TEXT)
    )


def _json_format(path: Path, text: str, is_whole: bool, declared: str) -> str:
    """Return JSON lines or JSON if a file, which begins with `text`, is that, else ""."""
    is_declared = declared in (JSON_LINES, JSON)
    if not text or text[0] not in ('[{"' if is_declared else "[{"):
        return ""
    first = itertools.islice((line for line in lines(path) if line.strip()), 20)
    values = [_parsed(line) for line in first]
    kinds = dict | list | str if is_declared else dict
    if len(values) > 1 and all(isinstance(value, kinds) for value in values):
        return JSON_LINES
    if isinstance(values[0], dict) and (len(values) > 1 or declared == JSON_LINES):
        return JSON_LINES if is_declared else ""
    value = values[0] if len(values) == 1 else _parsed(text) if is_whole else _NOT_JSON
    if value is _NOT_JSON:
        return JSON if not is_whole and _begins_json(text, is_declared) else ""
    entry = next(iter(value), None) if isinstance(value, list) else value
    return JSON if is_declared or (entry and isinstance(entry, dict | list | str)) else ""


_NOT_JSON = object()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _begins_json(text: str, is_declared: bool) -> bool:
    """Return whether text that was cut somewhere is JSON as far as it goes."""
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Unterminated string"):  # as long as that, prose may be, too
            return is_declared or bool(_OBJECT.match(text))
        return error.pos >= len(text) - 8
    except RecursionError:
        return False
    return False  # a whole value, and then something else


def _table_format(text: str, is_whole: bool) -> str:
    """Return `TABLE` for a header that names a text column and rows of as many cells, else ""."""
    text = text if "\n" in text else text.replace("\r", "\n")
    mark = _mark(text.split("\n", 1)[0])
    try:
        table = list(itertools.islice(_reader(_LINE.findall(text), mark), 20))
    except csv.Error:
        return ""
    rows = table if is_whole and len(table) < 20 else table[:-1]
    names = [name.lower() for name in rows[0] if _COLUMN.fullmatch(name)] if rows else []
    is_header = len({*names}) == len(rows[0]) > 1 and {*names} & {*TEXT_COLUMNS} if rows else False
    fits = len(rows) > 1 and all(len(row) in (0, len(names)) for row in rows)
    return TABLE if is_header and fits else ""


def _mark(header: str) -> str:
    """Return what separates the cells of a table: what its first line has most of."""
    return max(_MARKS, key=header.count)


def _reader(lines: Any, mark: str) -> Any:
    csv.field_size_limit(_CELL_CHARS_MAX)
    if mark == "\t":  # quotes are text there
        return csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=mark, strict=True)


def rows(
    path: Path, columns: Sequence[str] | None = None, names: Sequence[str] = ()
) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each row; a table's rows are objects, JSON's what they are.

    Numbers are lines from 1, in JSON places from 1, in Parquet from 0. `columns` are all that is
    needed of Parquet; `names` those of a table without a header. Cells beyond the last column are
    under the key None.
    """
    readers: dict[str, Callable[[], Iterator[tuple[int, Any]]]] = {
        JSON_LINES: lambda: json_lines(path),
        JSON: lambda: _json(path),
        TABLE: lambda: _table(path, names),
        PARQUET: lambda: enumerate(parquet_rows(path, columns)),
    }
    kind = format_of(path)
    if kind == TEXT:
        fix = "a file of JSON lines, JSON, CSV, TSV or Parquet"
        raise BadText("this is plain text, without rows", where=path, fix=fix)
    yield from readers[kind]()


def columns_of(values: Sequence[Any]) -> list[str]:
    """Return the names of the columns that rows have, in order."""
    names = (name for value in values if isinstance(value, Mapping) for name in value)
    return [name for name in dict.fromkeys(names) if name is not None]


def parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, with the `columns` that it has (None: all)."""
    try:
        with opened.opened(path) as file, parquet.ParquetFile(_seekable(file, path)) as table:
            for batch in table.iter_batches(batch_size=256, columns=columns):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadText(f"this Parquet file cannot be read: {error}", where=path) from error


def _seekable(file: Any, path: Path) -> Any:
    return file if opened.is_as_it_is(path) else pyarrow.BufferReader(file.read())


def _table(path: Path, names: Sequence[str]) -> Iterator[tuple[int, dict[Any, Any]]]:
    for number, cells in cells_of(path):
        if not names:
            names = [name.strip() for name in cells]
            if all(len(name) <= _NAME_CHARS_MAX for name in names):
                continue
            names = [str(i) for i in range(1, len(cells) + 1)]  # no header, but text
        row: dict[Any, Any] = dict(itertools.zip_longest(names, cells[: len(names)]))
        if len(cells) > len(names):
            row[None] = cells[len(names) :]
        yield number, row


def cells_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each row of a table, its header too."""
    header = next((line for line in lines(path) if line.strip()), "")
    rows: Iterator[str] = lines(path)
    if "\r" in header.rstrip("\r\n"):  # which ends lines alone, as in CSV of Excel for Mac
        rows = (row for line in lines(path) for row in _CR_LINE.findall(line))
    reader = _reader(rows, _mark(header))
    number = 1
    try:
        for cells in reader:
            if cells:
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        what = f"this table cannot be read: the row of line {number}: {error}"
        fix = f"mend it: sed -n {number}p {shlex.quote(str(path))}"
        raise BadText(what, where=path, fix=fix) from error


def json_values(path: Path) -> Iterator[Any]:
    """Yield the entries of a JSON list, streamed, or the one other value of a file."""
    start = opened.head(path).decode("utf-8-sig", "replace").lstrip()
    if start.startswith("["):
        yield from _entries(path)
        return
    with opened.opened(path) as file:
        raw = file.read(JSON_BYTES_MAX + 1)
    if len(raw) > JSON_BYTES_MAX:
        what = f"more than {JSON_BYTES_MAX / 1e6:,.0f} MB of JSON in one object"
        names = map(shlex.quote, (str(path), str(path.with_suffix(".jsonl"))))
        raise BadText(what, where=path, fix="jq -c '.[]' {} > {}".format(*names))
    try:
        yield json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        list(lines(path))  # raises, with the place
        raise
    except (ValueError, RecursionError) as error:
        raise _not_json(path, error) from error


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    is_list = opened.head(path).decode("utf-8-sig", "replace").lstrip().startswith("[")
    values = json_values(path)
    yield from enumerate(values if is_list else _rows_in(next(values)), 1)


def _rows_in(value: Any) -> list[Any]:
    """Return the rows in an object: those of its one list, or its values, with their keys as ids.

    Columns become rows. An object with a text column, or none of this, is one row.
    """
    values = list(value.values()) if isinstance(value, dict) else []
    if values and all(isinstance(v, dict) for v in values):
        if any(values) and all(key.isdigit() for v in values for key in v):  # pandas
            return [{name: column.get(k) for name, column in value.items()} for k in values[0]]
        return [{"id": key, **v} for key, v in value.items()]
    is_by_column = len(values) > 1 and all(isinstance(v, list) for v in values)
    if is_by_column and len(set(map(len, values))) == 1:
        return [dict(zip(value, row, strict=True)) for row in zip(*values, strict=True)]
    if not any(name in value for name in TEXT_COLUMNS):
        lists = [v for v in values if isinstance(v, list) and _is_rows(v)]
        if len(lists) == 1:
            return lists[0]
        if len(values) > 1 and all(isinstance(v, str) for v in values):
            return [{"id": key, "text": v} for key, v in value.items()]
    return [value]


def _is_rows(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(entry, dict | str | list) for entry in value)


def _entries(path: Path) -> Iterator[Any]:
    """Yield the entries of a JSON list, however long it is."""
    decoder, pieces = json.JSONDecoder(), plain_text(path)
    text, n_lines, is_at_end = next(pieces, "").lstrip(), 0, False
    at = 1
    while True:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        end = at
        try:
            if text[at : at + 1] == "]":
                return
            value, end = decoder.raw_decode(text, at)
            end = _SPACE.match(text, end).end()  # type: ignore[union-attr]
            is_entry = text[end : end + 1] in (",", "]") and end < len(text)
            problem: Exception = ValueError("a comma or ] is missing")
        except (ValueError, RecursionError) as error:
            is_entry, problem = False, error
        if is_entry:
            yield value
            at = end + (text[end] == ",")
            if at < _BLOCK_CHARS:
                continue
            piece = ""
        elif is_at_end:
            raise _not_json(path, problem, n_lines)
        else:  # twice as much each time
            piece = "".join(itertools.islice(pieces, 1 + len(text) // _BLOCK_CHARS))
            is_at_end = not piece
        n_lines += text.count("\n", 0, at)
        text, at = text[at:] + piece, 0


def plain_text(path: Path) -> Iterator[str]:
    r"""Yield a file's text in pieces, with ``\n`` line ends and without a BOM."""
    try:
        with io.TextIOWrapper(opened.opened(path), encoding="utf-8-sig") as file:
            while piece := file.read(_BLOCK_CHARS):
                yield piece
    except UnicodeDecodeError:
        for _ in lines(path):  # raises, with the place
            pass
        raise


def _not_json(path: Path, error: Exception, n_lines: int = 0) -> BadText:
    place = f"line {error.lineno + n_lines}: " if isinstance(error, json.JSONDecodeError) else ""
    what = f"not valid JSON: {place}{getattr(error, 'msg', error)}"
    return BadText(what, where=path, fix=f"python3 -m json.tool {shlex.quote(str(path))}")
