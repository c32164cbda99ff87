"""What every kind of source is: two functions, and what they pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from imatrix_lab.core.session import Session
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.errors import BadText
from imatrix_lab.types import Document


@dataclass(frozen=True)
class Pinned:
    """A source as it can be had here and now: version and sha256 say which bytes are meant.

    Attributes
    ----------
    version : of the package or the data set; a commit on the Hub.
    sha256 : of the wheel or package; of several files, that of the list of theirs. A commit of
        the Hub names its bytes, so there it is that of repository, commit and configuration.
    """

    source: Source
    version: str
    sha256: str


def row_id(number: int, own: object) -> str:
    """Return what to call a row: by its own id where it has one, which may not be the only such."""
    return f"{number:06d}" if own in (None, "") else f"{own}/{number:06d}"


def still_the_same(pinned: Pinned, now: Pinned, language: Language) -> None:
    """Refuse a text on this machine that is not the one which was pinned.

    Raises
    ------
    BadText : it has changed.
    """
    if now.sha256 != pinned.sha256:
        raise BadText(
            f"the text {pinned.source.name} has changed since it was chosen",
            fix=f"imatrix-lab corpus build {language.code} --renew",
        )


class Kind(Protocol):
    """A module of this package."""

    def reach(self, source: Source, session: Session) -> Pinned:
        """Return which bytes this source would give now, at little cost.

        Raises
        ------
        FetchFailed, MissingTool, BadText : it cannot be had here now; says why and what helps.
        """

    def documents(self, pinned: Pinned, language: Language, session: Session) -> Iterator[Document]:
        """Yield the documents in the source's own order; what is fetched is kept in the store.

        Raises
        ------
        FetchFailed : it cannot be fetched as pinned, or not to its end.
        BadText : a file of it is missing, damaged or not UTF-8.
        """
