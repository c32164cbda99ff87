"""Documents on disk: one JSON object a line, as in ``heldout.jsonl``."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from imatrix_lab.errors import BadText
from imatrix_lab.types import Document

JOINT = "\n\n"
DOCUMENT_CHARS_MIN = 400
DOCUMENT_CHARS = 3000
"""A document made of loose paragraphs ends when it has so many characters: about a page."""
LINE_BYTES_MAX = 64 << 20
"""More in one line is no JSON that anyone wrote for a line reader."""

_SENTENCE_END = re.compile(r"[.!?:;…。！？：؟۔।॥،][\"”»’')\]]*$")


def ends_as_sentence(text: str) -> bool:
    """Return whether a paragraph ends with a mark that ends sentences or introduces a list."""
    return bool(_SENTENCE_END.search(text))


def decode(raw: bytes, name: str, keep_cr: bool = False) -> str:
    r"""Return UTF-8 text with ``\n`` line ends, or with `keep_cr` its own, as llama.cpp reads it.

    Raises
    ------
    BadText : not UTF-8; names the file and the byte.
    """
    try:
        text = raw.decode("utf-8" if keep_cr else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(error.start, name) from error
    return text if keep_cr else text.replace("\r\n", "\n").replace("\r", "\n")


def _not_utf8(byte: int, where: str | Path) -> BadText:
    return BadText(f"not UTF-8 at byte {byte}", where=where, fix=f"iconv -t UTF-8 {where}")


def lines(path: Path, bytes_max: int = LINE_BYTES_MAX) -> Iterator[str]:
    r"""Yield the lines of a UTF-8 file with their ``\n``, streamed; longer ones in pieces.

    A byte-order mark is left out.

    Raises
    ------
    BadText : not UTF-8; names the file and the byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with path.open("rb") as file:
        while True:
            raw = file.readline(bytes_max)
            try:
                line = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                held_back = len(decoder.getstate()[0])  # of a character that a piece ended in
                raise _not_utf8(done - held_back + error.start, path) from error
            if not raw:
                return
            yield line if done else line.removeprefix("\ufeff")
            done += len(raw)


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of a file with a JSON value a line; blank lines are passed over.

    Raises
    ------
    BadText : a line that is not JSON, or not UTF-8.
    """
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                what = f"line {number} is no document: not valid JSON: {error}"
                raise BadText(what, where=path) from error
            yield number, value


def json_texts(path: Path, field: str = "text") -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield (line number, object, its text) of a file with a JSON object a line.

    Raises
    ------
    BadText : a line that is no object with such a text, or not UTF-8.
    """
    for number, entry in json_lines(path):
        try:
            text = entry[field]
            if not isinstance(text, str):
                raise TypeError(f"its {field} is not a string")
            text.encode()  # JSON can spell half a character
        except (ValueError, KeyError, TypeError) as error:
            raise BadText(f"line {number} is no document: {error}", where=path) from error
        yield number, entry, text


def parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, of these columns those that are there (None: of all).

    Raises
    ------
    BadText : not a Parquet file, or a damaged one.
    """
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256, columns=columns):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadText(f"this Parquet file cannot be read: {error}", where=path) from error


def paragraphs(found: Iterable[str]) -> Iterator[str]:
    """Join lines to paragraphs: they end at a blank line, or, lacking these, after a page."""
    pending: list[str] = []
    size = 0
    for line in found:
        if line.strip():
            pending.append(line.rstrip())
            size += len(line)
        if pending and (not line.strip() or size >= DOCUMENT_CHARS):
            yield "\n".join(pending)
            pending, size = [], 0
    if pending:
        yield "\n".join(pending)


def tidy(text: str) -> str:
    """Return a text with LF line ends, and one blank line between its paragraphs."""
    lines = (line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return re.sub(r"\n{3,}", JOINT, "\n".join(lines)).strip("\n")


def gathered(paragraphs: Iterable[str], chars: int = DOCUMENT_CHARS) -> Iterator[str]:
    """Join paragraphs to documents that end with the paragraph which reaches `chars`."""
    pending: list[str] = []
    size = 0
    for paragraph in paragraphs:
        pending.append(paragraph)
        size += len(paragraph)
        if size >= chars:
            yield JOINT.join(pending)
            pending, size = [], 0
    if pending:
        yield JOINT.join(pending)


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
