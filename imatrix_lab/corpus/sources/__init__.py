"""Where documents come from: one module for each kind of source."""

from imatrix_lab.corpus.languages import Source
from imatrix_lab.corpus.sources import debian, files, hub, pypi, written
from imatrix_lab.corpus.sources.base import Kind

KINDS: dict[str, Kind] = {
    "hub": hub,
    "pypi": pypi,
    "debian": debian,
    "files": files,
    "written": written,
}


def local_sha256(source: Source) -> str:
    """Return the sha256 of a text that is on this machine, or "" for other kinds of source."""
    kinds = {"files": files, "written": written}
    return kinds[source.kind].sha256_of(source) if source.kind in kinds else ""
