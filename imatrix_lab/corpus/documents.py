"""Documents on disk: one JSON object a line, as in ``heldout.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from imatrix_lab.corpus.text import json_texts
from imatrix_lab.errors import BadText
from imatrix_lab.records import Document


def line(document: Document) -> str:
    """Return a document as one line of JSON."""
    entry = {
        "id": document.id,
        "text": document.text,
        "source": document.source,
        "licence": document.licence,
    }
    return json.dumps(entry, ensure_ascii=False) + "\n"


def stream(path: Path) -> Iterator[Document]:
    """Yield the documents of a file, one JSON object a line.

    Only ``text`` must be there; a document without an ``id`` is called by its line.

    Raises
    ------
    BadText : a line that is not a document, or not UTF-8; names line or byte.
    """
    for number, entry, text in json_texts(path):
        name = str(entry.get("id") or f"{path.stem}/{number:06d}")
        source, licence = (str(entry.get(key, "unknown")) for key in ("source", "licence"))
        yield Document(name, text, source, licence)


def read(path: Path) -> list[Document]:
    """Return the documents of a file like heldout.jsonl; see `stream`.

    Raises
    ------
    BadText : besides, an id that occurs twice.
    """
    found: dict[str, Document] = {}
    for document in stream(path):
        if document.id in found:
            raise BadText(f"the id {document.id!r} occurs twice", where=path)
        found[document.id] = document
    return list(found.values())
