"""Rows of a benchmark: from the Hub at a commit, or from local files; read with `datasets`."""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from imatrix_lab.errors import BadText, FetchFailed, UsageError
from imatrix_lab.hub_transfer import TIMEOUT_S, ask, endpoint, need_network
from imatrix_lab.store import sha256_file
from imatrix_lab.tasks.definition import Definition, Source
from imatrix_lab.typed import nearest

Row = dict[str, Any]
FILE_BYTES_MAX = 2 << 30
"""Benchmarks are small; a larger file is not one."""


@dataclass(frozen=True)
class Rows:
    """A benchmark's rows in one language.

    Attributes
    ----------
    origin : where they are from, for the signature: the repository and its commit, or the names
        of files and their sha256.
    """

    rows: tuple[Row, ...]
    origin: Mapping[str, str]


def rows(definition: Definition, language: str, data: Path | None = None) -> Rows:
    """Return the rows of one language.

    Parameters
    ----------
    data : a file, or a folder that has the definition's files; None for the Hub. Where neither
        says its language, it is in whichever is asked for.

    Raises
    ------
    UsageError : the benchmark does not have the language, or no place to fetch it from.
    FetchFailed : the Hub does not give it.
    BadText : a file that is missing, or is not what its name says.
    """
    code = language if _in_any(definition, data) else own_code(definition, language)
    if data is None and not definition.source.hub:
        raise UsageError(
            f"{definition.name} is not on the Hub",
            fix=f"{definition.source.get or 'fetch it'}; then --data FOLDER",
        )
    if data is not None and not data.exists():
        raise BadText("no such file or folder", where=data, fix="check the path")
    read = _from_hub if data is None else _local(data)
    found = _without(read(definition, code), definition.source.drop)
    if data is None:
        _check_count(definition, len(found.rows))
    if not definition.source.beside:
        return found
    beside = read(definition, definition.source.beside)
    if len(beside.rows) != len(found.rows):
        raise BadText(
            f"{definition.name}: {len(found.rows)} rows in {code} and {len(beside.rows)} in"
            f" {definition.source.beside}; they must be the same, line by line"
        )
    joined = tuple({**row, "beside": other} for row, other in zip(found.rows, beside.rows,
                                                                  strict=True))  # fmt: skip
    return Rows(joined, {**beside.origin, **found.origin})


def has(definition: Definition, language: str, data: Path | None) -> bool:
    """Return whether a benchmark has a language, as far as its definition tells."""
    known = definition.languages
    return not known or language in known or _in_any(definition, data)


def _in_any(definition: Definition, data: Path | None) -> bool:
    """Return whether local files are in whichever language is asked for."""
    named = any("{language}" in name for name in definition.source.files)
    return data is not None and (data.is_file() or not named)


def _check_count(definition: Definition, n_rows: int) -> None:
    """Refuse another version of a benchmark than the one its definition was written for."""
    if definition.items and n_rows != definition.items and not definition.source.is_pinned():
        raise BadText(
            f"{definition.name} on the Hub has {n_rows} rows, and not {definition.items}:"
            " it is another version",
            where=definition.path,
            fix="pin a commit in the definition: revision; or --data with the files you mean",
        )


def _without(found: Rows, drop: Sequence[str]) -> Rows:
    pairs = [word.partition("=") for word in drop]
    kept = [row for row in found.rows
            if not any(str(row.get(column)) == value for column, _, value in pairs)]  # fmt: skip
    return Rows(tuple(kept), found.origin)


def own_code(definition: Definition, language: str) -> str:
    """Return the benchmark's own code of a language.

    Raises
    ------
    UsageError : it does not have it.
    """
    if not definition.languages:
        return language
    if language not in definition.languages:
        raise UsageError(
            f"{definition.name} has no {language!r}{nearest(language, definition.languages)}",
            fix=f"--langs {','.join(definition.languages)}",
        )
    return definition.languages[language]


def _from_hub(definition: Definition, code: str) -> Rows:
    source = definition.source
    repo = f"datasets/{source.hub}"
    need_network()

    def commit() -> str:
        from huggingface_hub import HfApi

        revision = source.revision or None
        api = HfApi(endpoint=endpoint())
        return str(api.dataset_info(source.hub, revision=revision, timeout=TIMEOUT_S).sha)

    revision = source.revision
    if not source.is_pinned():
        revision = ask(repo, revision or "main", commit)
    parts = [
        ask(repo, revision, partial(_split, source, code, split, revision))
        for split in source.splits
    ]
    return Rows(tuple(row for part in parts for row in part), {source.hub: revision})


def _split(source: Source, code: str, split: str, revision: str) -> list[Row]:
    """Return the rows of a split at a commit.

    Raises
    ------
    FetchFailed : the repository has no such configuration, split or file, or damaged ones.
    """
    import datasets
    import pyarrow

    datasets.disable_progress_bars()
    files = source.data_files.replace("{language}", code)
    config = None if files else source.config.replace("{language}", code) or None
    try:
        found = datasets.load_dataset(
            source.hub, config, split=split, revision=revision,
            data_files={split: files} if files else None,
        )  # fmt: skip
        return [_plain(row) for row in found.to_list()]
    except (ValueError, FileNotFoundError, pyarrow.ArrowException,
            datasets.exceptions.DatasetsError) as error:  # fmt: skip
        raise FetchFailed(
            f"{source.hub} cannot be loaded: {str(error).splitlines()[0][:300]}",
            where=f"https://huggingface.co/datasets/{source.hub}",
            fix="check the network and the definition; or --data with the files of the benchmark",
        ) from None


def _local(data: Path) -> Callable[[Definition, str], Rows]:
    def read(definition: Definition, code: str) -> Rows:
        if data.is_file():
            origin = {data.name: sha256_file(data), **_provenance(data)}
            return Rows(tuple(_table(data, definition)), origin)
        names = [name.replace("{language}", code) for name in definition.source.files]
        if not names:
            raise UsageError(
                f"{definition.name} does not say which files of a folder are its items",
                where=data, fix="--data with one file",
            )  # fmt: skip
        columns = [name.partition("=") for name in names]
        paths = [data / (file or column) for column, _, file in columns]
        for path in paths:
            if not path.is_file():
                raise BadText(f"{definition.name}: no such file", where=path,
                              fix=definition.source.get or "check --data")  # fmt: skip
        origin = {path.name: sha256_file(path) for path in paths}
        if columns[0][1]:
            return Rows(tuple(_beside([c[0] for c in columns], paths)), origin)
        return Rows(tuple(row for path in paths for row in _table(path, definition)), origin)

    return read


def _provenance(data: Path) -> dict[str, str]:
    """Return what the manifest beside a file says of its making, where a model translated it."""
    path = data.with_suffix(".manifest.json")
    if not path.is_file():
        return {}
    try:
        told = json.loads(_decoded(path))
        by = f"{told['model']}, from {told['from']}, origin {told['origin']}"
    except (ValueError, KeyError, TypeError) as error:
        raise BadText("not the manifest of a translation", where=path, fix="remove it") from error
    return {"machine_translated": by}


def _beside(columns: list[str], paths: list[Path]) -> Iterator[Row]:
    """Yield rows of texts whose lines belong together."""
    texts = [_lines(_decoded(path)) for path in paths]
    if len({len(text) for text in texts}) > 1:
        counts = ", ".join(f"{p.name} {len(t)}" for p, t in zip(paths, texts, strict=True))
        raise BadText(f"these files have different numbers of lines: {counts}", where=paths[0])
    for lines in zip(*texts, strict=True):
        yield dict(zip(columns, lines, strict=True))


def _table(path: Path, definition: Definition) -> list[Row]:
    """Return the rows of a JSON, JSON lines, TSV, CSV or Parquet file."""
    import datasets

    if path.stat().st_size > FILE_BYTES_MAX:
        raise BadText("this file is too large for a benchmark", where=path)
    kind = path.suffix.lower()
    if kind == ".json":
        return _json(path)
    builders = {".jsonl": "json", ".parquet": "parquet", ".tsv": "csv", ".csv": "csv"}
    if kind not in builders:
        raise BadText(
            f"{path.name} is none of .json {' '.join(builders)}", where=path, fix="convert it first"
        )
    datasets.disable_progress_bars()
    builder = builders[kind]
    try:
        options = _csv(path, definition.source.columns) if builder == "csv" else {}
        if builder == "json":
            _decoded(path)
        table = datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except (OSError, ValueError, csv.Error, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).splitlines()[0][:300]
        raise BadText(f"{path.name} cannot be read: {reason}", where=path) from error
    return [_plain(row) for row in table.to_list()]


def _plain(value: Any) -> Any:
    """Return a value of text that UTF-8 can hold, and dates as text again.

    JSON has no dates, but its reader makes some; and it can spell half a character.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    return value


def _csv(path: Path, columns: Sequence[str]) -> dict[str, Any]:
    """Return how to read a table of texts: neither NA nor 007 is anything else."""
    import datasets

    is_tsv = path.suffix.lower() == ".tsv"
    quoting: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if is_tsv else {}
    mark = "\t" if is_tsv else ","
    head = next(csv.reader(_lines(_decoded(path)), delimiter=mark, **quoting), [])
    names = list(columns or head)
    features = datasets.Features({name: datasets.Value("string") for name in names})
    return {"sep": mark, "names": names, "header": None if columns else 0, "features": features,
            "keep_default_na": False, **quoting}  # fmt: skip


def _json(path: Path) -> list[Row]:
    """Return the rows of a JSON list of objects, or of an object of them by id."""
    try:
        raw = json.loads(_decoded(path))
    except (ValueError, RecursionError) as error:
        raise BadText(f"{path.name} is not JSON: {error}", where=path) from error
    if isinstance(raw, dict):
        raw = [{"id": key, **row} if isinstance(row, dict) else row for key, row in raw.items()]
    if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
        raise BadText(f"{path.name} is no list of objects, and no object of them", where=path)
    return [_plain(row) for row in raw]


def _lines(text: str) -> list[str]:
    """Return lines of a file; U+2028 and its like end none."""
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadText(f"{path.name} is not UTF-8: {error.reason}", where=path) from error
