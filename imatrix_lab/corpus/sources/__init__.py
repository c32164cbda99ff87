"""Where documents come from: a module a kind, all of the form of `kind.Kind`."""

from collections.abc import Iterator

from imatrix_lab.core.session import Session
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.corpus.sources import debian, files, hub, pypi, written
from imatrix_lab.corpus.sources.base import Kind, Pinned
from imatrix_lab.corpus.sources.files import add
from imatrix_lab.types import Document

__all__ = ["KINDS", "Pinned", "add", "documents", "local_sha256", "reach"]

KINDS: dict[str, Kind] = {
    "hub": hub,
    "pypi": pypi,
    "debian": debian,
    "files": files,
    "written": written,
}


def reach(source: Source, session: Session) -> Pinned:
    """Return which bytes a source would give here and now, at little cost; see `kind.Kind`."""
    return KINDS[source.kind].reach(source, session)


def documents(pinned: Pinned, language: Language, session: Session) -> Iterator[Document]:
    """Yield a source's documents, in its own order; see `kind.Kind`."""
    return KINDS[pinned.source.kind].documents(pinned, language, session)


def local_sha256(source: Source) -> str:
    """Return the sha256 of a text that lies on this machine; nothing of other kinds."""
    kinds = {"files": files, "written": written}
    return kinds[source.kind].sha256_of(source) if source.kind in kinds else ""
