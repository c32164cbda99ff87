"""Data sets on the Hugging Face Hub, streamed at one commit with `datasets`."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow

from imatrix_lab.core.hub_errors import Unreachable
from imatrix_lab.core.hub_http import ask, dataset_commit, endpoint, require_network
from imatrix_lab.core.session import Session
from imatrix_lab.corpus.documents import JOINT, tidy
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.corpus.sources.base import Pinned, row_id
from imatrix_lab.errors import BadText, FetchFailed
from imatrix_lab.types import Document

T = TypeVar("T")

REACH_S = 3.0
"""How long to wait for the Hub before another source is taken."""

_unreachable: dict[str, str] = {}
"""Endpoint -> why it could not be reached: each process tries once."""


def reach(source: Source, session: Session) -> Pinned:
    """Ask the Hub for the commit: the one pinned, else the newest."""
    settings = source.settings
    repo, revision = str(settings["repo"]), str(settings.get("revision", "main"))
    require_network()
    if why := _unreachable.get(endpoint()):
        raise Unreachable(why, where=repo)
    try:
        commit = dataset_commit(repo, revision, REACH_S)
    except Unreachable as error:
        _unreachable[endpoint()] = error.what
        raise
    parts = (repo, str(settings["config"]), str(settings["split"]), commit)
    return Pinned(source, commit, hashlib.sha256("\n".join(parts).encode()).hexdigest())


def documents(pinned: Pinned, language: Language, session: Session) -> Iterator[Document]:
    """Yield the rows in the data set's order; an id holds commit, configuration and row."""
    source, settings = pinned.source, pinned.source.settings
    rows = _call(pinned, lambda: _rows(pinned))
    number = 0
    while (row := _call(pinned, lambda: next(rows, None))) is not None:
        key = row_id(number, row.get(str(settings.get("id", ""))))
        text = row.get(settings["text"])
        if isinstance(text, list):
            text = JOINT.join(str(part) for part in text)
        if not isinstance(text, str):
            raise BadText(f"row {number} of {source.origin} has no text {settings['text']!r}")
        name = f"{source.name}@{pinned.version[:12]}/{settings['config']}/{key}"
        yield Document(name, tidy(text), source.name, source.licence)
        number += 1


def _call(pinned: Pinned, call: Callable[[], T]) -> T:
    """Call the libraries; their errors become `FetchFailed`, without the addresses in them."""
    import datasets

    try:
        return ask(f"datasets/{pinned.source.settings['repo']}", pinned.version, call)
    except FetchFailed:
        raise
    except (
        OSError, ValueError, pyarrow.ArrowException, datasets.exceptions.DatasetsError
    ) as error:  # fmt: skip
        what = f"{pinned.source.origin} cannot be read to its end ({type(error).__name__})"
    fix = "run the same command again, or choose another source: --source NAME"
    raise FetchFailed(what, fix=fix)


def _rows(pinned: Pinned) -> Iterator[dict[str, Any]]:
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    for name in ("READ", "OPEN"):  # the Hub's own library tries again by itself
        setattr(datasets.config, f"STREAMING_{name}_MAX_RETRIES", 1)
        setattr(datasets.config, f"STREAMING_{name}_RETRY_INTERVAL", 1)
    datasets.disable_progress_bars()
    settings = pinned.source.settings
    where = (settings["repo"], settings["config"])
    options = {"split": settings["split"], "revision": pinned.version, "streaming": True}
    return iter(datasets.load_dataset(*where, **options))
