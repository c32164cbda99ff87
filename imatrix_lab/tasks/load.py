"""Rows of a benchmark: from the Hub at a commit, or from local files; read with `datasets`.

The store keeps what came from the Hub, so that it is there without a network.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow

from imatrix_lab.core.config import nearest
from imatrix_lab.core.files import from_json, sha256_file
from imatrix_lab.core.hub_errors import Unreachable, login
from imatrix_lab.core.hub_http import ask, dataset_commit, require_network
from imatrix_lab.core.names import readable, slug
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadText, FetchFailed, UsageError
from imatrix_lab.tasks import readers
from imatrix_lab.tasks.definition import Definition, Source
from imatrix_lab.tasks.readers import Row

ROWS = "rows.json"


@dataclass(frozen=True)
class Rows:
    """A benchmark's rows in one language; by repository their commit, or by file the sha256."""

    rows: tuple[Row, ...]
    origin: Mapping[str, str]


def rows(
    task: Definition, language: str, data: Path | None = None, session: Session | None = None
) -> Rows:
    """Return the rows of one language, from the Hub (kept in the store), or a file or folder.

    Data that do not say their language are in `language`; `UsageError` if the benchmark lacks it.
    Without a network a task that is not pinned has the rows that were asked for last.
    """
    session = session or Session(Store(), Silent())
    check_data(task, data)
    code = language
    if not in_one(task, data) or not has(task, language, data):
        code = own_code(task, language)
    benchmark = _read(task, code, data, session)
    n_rows, beside = len(benchmark.rows), task.source.beside
    if data is None and not task.source.is_pinned() and task.items not in (0, n_rows):
        what = f"{task.name} on the Hub has {n_rows} rows, not {task.items}: it is another version"
        fix = "pin a commit in the definition: revision; or --data with the files you mean"
        raise BadText(what, where=task.path, fix=fix)
    if not beside or (data and all("beside" in row for row in benchmark.rows)):
        return benchmark  # a translation has them with it
    if data and data.is_file():
        codes = task.languages.get(language, language), beside
        names = ", ".join(dict.fromkeys(n for c in codes for n in _names(task.source, c)))
        what = f"{task.name} takes the same lines in {beside} too, which one file does not have"
        raise UsageError(what, where=data, fix=f"--data with a folder that has {names}")
    other = _read(task, beside, data, session)
    if len(other.rows) != n_rows:
        counts = f"{n_rows} rows in {code} and {len(other.rows)} in {beside}"
        raise BadText(f"{task.name}: {counts}; they must be the same, line by line")
    pairs = zip(benchmark.rows, other.rows, strict=True)
    joined = tuple({**row, "beside": other_row} for row, other_row in pairs)
    return Rows(joined, {**other.origin, **benchmark.origin})


def has(task: Definition, language: str, data: Path | None) -> bool:
    """Return whether a benchmark has a language, as far as its definition tells."""
    return not task.languages or language in task.languages or _may_be_translated(task, data)


def in_one(task: Definition, data: Path | None) -> bool:
    """Return whether there are local files in one language, which only the user knows."""
    named = any("{language}" in name for name in task.source.files)
    return data is not None and (data.is_file() or not named)


def _may_be_translated(task: Definition, data: Path | None) -> bool:
    """Return whether local files need not be those that the definition says the languages of."""
    if data is None or not in_one(task, data):
        return False
    named = (name for code in ("", *task.languages.values()) for name in _names(task.source, code))
    return bool(task.source.hub) or (data.is_file() and data.name not in named)


def own_code(task: Definition, language: str) -> str:
    """Return the benchmark's own code of a language; `UsageError` if it lacks that."""
    if task.languages and language not in task.languages:
        what = f"{task.name} has no {language!r}{nearest(language, task.languages)}"
        raise UsageError(what, fix=f"--langs {','.join(task.languages)}")
    return task.languages.get(language, language)


def check_data(task: Definition, data: Path | None) -> None:
    """Raise `UsageError` without data if a task is not on the Hub, `BadText` for a wrong path."""
    if data is None and not task.source.hub:
        fix = f"{task.source.get or 'fetch it'}; then --data FOLDER"
        raise UsageError(f"{task.name} is not on the Hub", fix=fix)
    if data is not None and not data.exists():
        raise BadText("no such file or folder", where=data, fix="check the path")


def _read(task: Definition, code: str, data: Path | None, session: Session) -> Rows:
    everything = _from_hub(task.source, code, session) if data is None else _local(task, code, data)
    rows = everything.rows
    for column, _, value in (word.partition("=") for word in task.source.drop):
        rows = tuple(row for row in rows if str(row.get(column)) != value)
    return Rows(rows, everything.origin)


def _from_hub(source: Source, code: str, session: Session) -> Rows:
    repo, hub, revision = f"datasets/{source.hub}", source.hub, source.revision
    asked = {
        "hub": hub,
        "revision": revision,
        "splits": list(source.splits),
        **_where(source, code),
    }

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        require_network()
        session.progress.say(f"fetching {hub} {code} at {commit[:12]}")
        parts = [ask(repo, commit, partial(_split, source, code, commit, s)) for s in source.splits]
        every = [row for part in parts for row in part]
        text = json.dumps(every, ensure_ascii=False, default=str)
        (out / ROWS).write_text(text, encoding="utf-8")
        return {"n_rows": len(every)}

    try:
        commit = revision if source.is_pinned() else dataset_commit(hub, revision or "main")
        inputs, label = {**asked, "commit": commit}, f"{slug(hub)}-{code}"
        kept = session.store.get("benchmark", label, inputs, build, session.progress)
    except Unreachable as error:
        before = session.store.like("benchmark", asked)
        if before is None:
            names = ", ".join(_names(source, code))
            by_hand = f"--data with a folder that has {names}" if names else "--data with its file"
            fix = f"{error.fix}; or {by_hand}"
            raise Unreachable(error.what, where=error.where, fix=fix) from None
        session.progress.say(f"note: {error.what}; {hub} is taken as it was when last asked for")
        kept = before
    every = from_json((kept.path / ROWS).read_bytes())
    return Rows(tuple(every), {hub: str(kept.manifest["inputs"]["commit"])})


def _where(source: Source, code: str) -> dict[str, str]:
    """Return which of a data set's files have a language: by pattern, else by configuration."""
    if source.data_files:
        return {"data_files": source.data_files.replace("{language}", code)}
    return {"config": source.config.replace("{language}", code)}


def _split(source: Source, code: str, revision: str, split: str) -> list[Row]:
    import datasets

    datasets.disable_progress_bars()
    where = _where(source, code)
    files = {split: where["data_files"]} if source.data_files else None
    load = partial(datasets.load_dataset, source.hub, where.get("config") or None)
    try:
        rows = load(revision=revision, split=split, data_files=files)
        return [readers.plain(row) for row in rows.to_list()]
    except (ValueError, FileNotFoundError, RuntimeError, KeyError, TypeError,
            pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:  # fmt: skip
        repo, is_gated = f"datasets/{source.hub}", "gated" in str(error)
        why = (str(error).splitlines() or [type(error).__name__])[0]
        what = f"{source.hub} cannot be loaded: {why[:300]}"
        fix = login(repo) if is_gated else "check the definition, or --data"
        raise FetchFailed(what, where=f"https://huggingface.co/{repo}", fix=fix) from None


def _names(source: Source, code: str) -> list[str]:
    names = (name.replace("{language}", code) for name in source.files)
    return [name.partition("=")[2] or name for name in names]


def _local(task: Definition, code: str, data: Path) -> Rows:
    source = task.source
    if data.is_file():
        origin = {readable(data.name): sha256_file(data), **_translator(data, code)}
        return Rows(tuple(readers.table(data, source.columns)), origin)
    paths = [data / name for name in _names(source, code)]
    if not paths:
        what = f"{task.name} does not say which files of a folder are its items"
        raise UsageError(what, where=data, fix="--data with one file")
    for path in paths:
        if not path.is_file():
            fix = source.get or "check --data"
            raise BadText(f"{task.name}: no such file", where=path, fix=fix)
    origin = {readable(path.name): sha256_file(path) for path in paths}
    if "=" in source.files[0]:
        columns = [name.partition("=")[0] for name in source.files]
        return Rows(tuple(readers.beside(columns, paths)), origin)
    return Rows(tuple(row for p in paths for row in readers.table(p, source.columns)), origin)


def _translator(data: Path, code: str) -> dict[str, str]:
    """Return what the manifest beside a file says of the model that translated it, if one did.

    Raises UsageError: it translated into another language than `code`.
    """
    path = data.with_suffix(".manifest.json")
    if not path.is_file():
        return {}
    try:
        manifest = from_json(readers.decoded(path))
        by = f"{manifest['model']}, from {manifest['from']}, origin {manifest['origin']}"
    except (ValueError, KeyError, TypeError) as error:
        raise BadText("not the manifest of a translation", where=path, fix="remove it") from error
    if (into := str(manifest.get("language", code))) != code:
        what = f"this is a translation into {into}, not {code}"
        raise UsageError(what, where=data, fix=f"--langs {into}")
    return {"machine_translated": by}
