"""From the bytes of a file to documents: one module for each format.

Each has ``extract(name, raw)``, or ``strings(name, raw)`` for the strings of a user interface. They
keep prose, leave out menus, listings and code, and raise `BadText` for a file that is damaged.
"""

from collections.abc import Callable, Iterable, Iterator

from imatrix_lab.corpus.documents import DOCUMENT_CHARS_MIN, JOINT
from imatrix_lab.corpus.extract import (
    anthology,
    epub,
    gettext,
    markup,
    mediawiki,
    pak,
    qt,
    source_code,
    strings,
)
from imatrix_lab.corpus.languages import Source
from imatrix_lab.errors import UsageError
from imatrix_lab.types import Document

Extractor = Callable[[str, bytes], Iterator[str]]

EXTRACTORS: dict[str, Extractor] = {
    "anthology": anthology.extract,
    "html": markup.reader(markup.HTML),
    "handbook": markup.reader(markup.HANDBOOK),
    "mallard": markup.reader(markup.MALLARD),
    "epub": epub.extract,
    "pak": strings.reader(pak.strings),
    "gettext": strings.reader(gettext.strings),
    "qt": strings.reader(qt.strings),
    "mediawiki": strings.reader(mediawiki.strings),
    "source-code": source_code.extract,
}


def extract(source: Source, files: Iterable[tuple[str, bytes]]) -> Iterator[Document]:
    """Yield the documents in files (name, content); short ones join the next, across files too."""
    extractor = str(source.settings["extractor"])
    if extractor not in EXTRACTORS:
        what = f"{source.name}: no extractor is called {extractor!r}"
        raise UsageError(what, fix=f"one of: {' '.join(EXTRACTORS)}")
    pending: list[str] = []
    first_id = ""
    for name, raw in files:
        for i, text in enumerate(EXTRACTORS[extractor](name, raw)):
            first_id = first_id if pending else f"{source.name}/{name}/{i:04d}"
            pending.append(text)
            if sum(map(len, pending)) >= DOCUMENT_CHARS_MIN:
                yield Document(first_id, JOINT.join(pending), source.name, source.licence)
                pending = []
    if pending:
        yield Document(first_id, JOINT.join(pending), source.name, source.licence)
