"""Rows of a benchmark: from the Hub at a commit, or from local files; read with `datasets`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow

from imatrix_lab.core.config import nearest
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.hub_http import TIMEOUT_S, Unreachable, ask, endpoint, login, need_network
from imatrix_lab.errors import BadText, FetchFailed, UsageError
from imatrix_lab.tasks import readers
from imatrix_lab.tasks.definition import Definition, Source
from imatrix_lab.tasks.readers import Row


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
    code = language if in_one(definition, data) else own_code(definition, language)
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
    return not known or language in known or in_one(definition, data)


def in_one(definition: Definition, data: Path | None) -> bool:
    """Return whether there are local files in one language, which only the user knows."""
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

    def commit() -> str:
        from huggingface_hub import HfApi

        revision = source.revision or None
        api = HfApi(endpoint=endpoint())
        return str(api.dataset_info(source.hub, revision=revision, timeout=TIMEOUT_S).sha)

    revision = source.revision
    try:
        need_network()
        if not source.is_pinned():
            revision = ask(repo, revision or "main", commit)
        parts = [
            ask(repo, revision, partial(_split, source, code, split, revision))
            for split in source.splits
        ]
    except Unreachable as error:
        names = ", ".join(_names(source, code))
        by_hand = f"--data with a folder that has {names}" if names else "--data with its file"
        raise Unreachable(error.what, where=error.where, fix=f"{error.fix}; or {by_hand}") from None
    return Rows(tuple(row for part in parts for row in part), {source.hub: revision})


def _split(source: Source, code: str, split: str, revision: str) -> list[Row]:
    """Return the rows of a split at a commit.

    Raises
    ------
    FetchFailed : the repository has no such configuration, split or file, or damaged ones.
    """
    import datasets

    datasets.disable_progress_bars()
    pattern = source.data_files.replace("{language}", code)
    config = None if pattern else source.config.replace("{language}", code) or None
    try:
        found = datasets.load_dataset(
            source.hub, config, split=split, revision=revision,
            data_files={split: pattern} if pattern else None,
        )  # fmt: skip
        return [readers.plain(row) for row in found.to_list()]
    except (ValueError, FileNotFoundError, pyarrow.ArrowException,
            datasets.exceptions.DatasetsError) as error:  # fmt: skip
        is_gated = "gated" in str(error)
        raise FetchFailed(
            f"{source.hub} cannot be loaded: {str(error).splitlines()[0][:300]}",
            where=f"https://huggingface.co/datasets/{source.hub}",
            fix=login(f"datasets/{source.hub}") if is_gated else "check the definition, or --data",
        ) from None


def _names(source: Source, code: str) -> list[str]:
    """Return the names of local files, without the columns that they are."""
    names = (name.replace("{language}", code) for name in source.files)
    return [name.partition("=")[2] or name for name in names]


def _local(data: Path) -> Callable[[Definition, str], Rows]:
    def read(definition: Definition, code: str) -> Rows:
        if data.is_file():
            origin = {data.name: sha256_file(data), **_provenance(data)}
            return Rows(tuple(readers.table(data, definition.source.columns)), origin)
        source = definition.source
        paths = [data / name for name in _names(source, code)]
        if not paths:
            raise UsageError(
                f"{definition.name} does not say which files of a folder are its items",
                where=data, fix="--data with one file",
            )  # fmt: skip
        for path in paths:
            if not path.is_file():
                raise BadText(f"{definition.name}: no such file", where=path,
                              fix=source.get or "check --data")  # fmt: skip
        origin = {path.name: sha256_file(path) for path in paths}
        if "=" in source.files[0]:
            columns = [name.partition("=")[0] for name in source.files]
            return Rows(tuple(readers.beside(columns, paths)), origin)
        found = (row for path in paths for row in readers.table(path, source.columns))
        return Rows(tuple(found), origin)

    return read


def _provenance(data: Path) -> dict[str, str]:
    """Return what the manifest beside a file says of its making, where a model translated it."""
    path = data.with_suffix(".manifest.json")
    if not path.is_file():
        return {}
    try:
        told = json.loads(readers.decoded(path))
        by = f"{told['model']}, from {told['from']}, origin {told['origin']}"
    except (ValueError, KeyError, TypeError) as error:
        raise BadText("not the manifest of a translation", where=path, fix="remove it") from error
    return {"machine_translated": by}
