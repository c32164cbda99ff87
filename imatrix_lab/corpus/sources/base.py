"""What every kind of source provides: two functions, and the record they share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from imatrix_lab.core.session import Session
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.errors import BadText
from imatrix_lab.types import Document


@dataclass(frozen=True)
class Pinned:
    """A source and the exact bytes it gives: version (a commit on the Hub) and sha256.

    The sha256 is of the wheel or package; of several files, of the list of their sha256; on the
    Hub, where a commit names its bytes, of repository, commit and configuration.
    """

    source: Source
    version: str
    sha256: str


def row_id(number: int, own_id: object) -> str:
    """Return an id for a row: its number, after its own id if it has one (which may repeat)."""
    return f"{number:06d}" if own_id in (None, "") else f"{own_id}/{number:06d}"


def check_unchanged(pinned: Pinned, now: Pinned, language: Language) -> None:
    """Raise `BadText` if a text on this machine is not the one that was pinned."""
    if now.sha256 != pinned.sha256:
        what = f"the text {pinned.source.name} has changed since it was chosen"
        raise BadText(what, fix=f"imatrix-lab corpus build {language.code} --renew")


class Kind(Protocol):
    """A module of this package."""

    def reach(self, source: Source, session: Session) -> Pinned:
        """Return which bytes this source would give now, at little cost.

        Raises `FetchFailed`, `MissingTool` or `BadText` if it is not available here now.
        """

    def documents(self, pinned: Pinned, language: Language, session: Session) -> Iterator[Document]:
        """Yield the documents in the source's own order; what is fetched is kept in the store."""
