"""Texts written for this project: in the repository, and so always there."""

from __future__ import annotations

from collections.abc import Iterator

from imatrix_lab.corpus.sources.files import json_lines
from imatrix_lab.corpus.sources.kind import Pinned
from imatrix_lab.corpus.text import tidy
from imatrix_lab.errors import BadText
from imatrix_lab.languages import Language, Source, data_dir
from imatrix_lab.progress import Progress
from imatrix_lab.records import Document
from imatrix_lab.store import Store, sha256_file


def reach(source: Source, store: Store, progress: Progress) -> Pinned:
    """Look whether the file is there."""
    path = data_dir("corpora") / source.settings["file"]
    if not path.is_file():
        raise BadText("this text is not there", where=path, fix="install the package again")
    digest = sha256_file(path)
    return Pinned(source, digest[:12], digest)


def documents(
    pinned: Pinned, language: Language, store: Store, progress: Progress
) -> Iterator[Document]:
    """Yield the documents in order."""
    source = pinned.source
    path = data_dir("corpora") / source.settings["file"]
    for name, text in json_lines(path):
        yield Document(f"{source.name}/{name}/0000", tidy(text), source.name, source.licence)
