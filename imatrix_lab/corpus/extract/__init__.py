"""From the bytes of a file to documents: a module a format, each with ``extract(name, raw)``.

An extractor keeps prose, paragraphs of sentences, and leaves out menus, listings and code.
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
    "pak": pak.extract,
    "gettext": gettext.extract,
    "qt": qt.extract,
    "mediawiki": mediawiki.extract,
    "source-code": source_code.extract,
}


def extract(source: Source, files: Iterable[tuple[str, bytes]]) -> Iterator[Document]:
    """Yield the documents in the files of a source.

    Short ones join the next, across files too: a catalogue may hold no more than a sentence.

    Parameters
    ----------
    files : name and content of each.

    Raises
    ------
    BadText : a file is not what the extractor reads.
    """
    word = str(source.settings["extractor"])
    if word not in EXTRACTORS:
        raise UsageError(
            f"{source.name}: no extractor is called {word!r}", fix=f"one of: {' '.join(EXTRACTORS)}"
        )
    held: list[str] = []
    first = ""
    for name, raw in files:
        for i, text in enumerate(EXTRACTORS[word](name, raw)):
            first = first if held else f"{source.name}/{name}/{i:04d}"
            held.append(text)
            if sum(map(len, held)) >= DOCUMENT_CHARS_MIN:
                yield Document(first, JOINT.join(held), source.name, source.licence)
                held = []
    if held:
        yield Document(first, JOINT.join(held), source.name, source.licence)
