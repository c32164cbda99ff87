"""From the bytes of a file to documents: a module a format, each with ``extract(name, raw)``.

An extractor keeps prose, paragraphs of sentences, and leaves out menus, listings and code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

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
from imatrix_lab.errors import UsageError
from imatrix_lab.languages import Source
from imatrix_lab.records import Document

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


def extract(source: Source, name: str, raw: bytes) -> Iterator[Document]:
    """Yield the documents of one file of a source.

    Raises
    ------
    BadText : the file is not what its extractor reads.
    """
    word = str(source.settings["extractor"])
    if word not in EXTRACTORS:
        raise UsageError(f"{source.name}: no extractor is called {word!r}",
                         fix=f"one of: {' '.join(EXTRACTORS)}")  # fmt: skip
    stem = PurePosixPath(name)
    for i, text in enumerate(EXTRACTORS[word](name, raw)):
        yield Document(f"{source.name}/{stem}/{i:04d}", text, source.name, source.licence)
