"""Texts written for this project, which come with the package."""

from collections.abc import Iterator
from pathlib import Path

from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.paths import data_dir
from imatrix_lab.core.session import Session
from imatrix_lab.corpus.documents import json_texts, tidy
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.corpus.sources.base import Pinned, check_unchanged, row_id
from imatrix_lab.errors import BadText
from imatrix_lab.types import Document


def reach(source: Source, session: Session) -> Pinned:
    """Check that the file is there."""
    digest = sha256_of(source)
    if not digest:
        raise BadText("this text is missing", where=_path(source), fix="install the package again")
    return Pinned(source, digest[:12], digest)


def sha256_of(source: Source) -> str:
    """Return the sha256 of the file, or "" if it is missing."""
    path = _path(source)
    return sha256_file(path) if path.is_file() else ""


def _path(source: Source) -> Path:
    return data_dir("corpora") / str(source.settings["file"])


def documents(pinned: Pinned, language: Language, session: Session) -> Iterator[Document]:
    """Yield the documents in order."""
    source = pinned.source
    check_unchanged(pinned, reach(source, session), language)
    for number, entry, text in json_texts(_path(source)):
        document_id = f"{source.name}/{row_id(number, entry.get('id'))}"
        yield Document(document_id, tidy(text), source.name, source.licence)
