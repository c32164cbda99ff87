"""Documents and the text files they come from.

Documents are kept with one JSON object on each line, as in ``heldout.jsonl``. Files of any size
are streamed as lines, JSON values or Parquet rows, and loose paragraphs gathered to documents.
All readers raise `BadText` for a damaged file, and name the line or byte.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from imatrix_lab.core.files import from_json
from imatrix_lab.core.names import readable
from imatrix_lab.corpus import opened
from imatrix_lab.errors import BadText
from imatrix_lab.types import Document

T = TypeVar("T")

JOINT = "\n\n"
DOCUMENT_CHARS_MIN = 400
DOCUMENT_CHARS = 3000
"""Loose paragraphs are gathered to documents of so many characters: about a page."""
LINE_BYTES_MAX = 64 << 20
"""Longer lines are read in pieces: they are not JSON lines."""

_SENTENCE_END = re.compile(r"[.!?:;…。！？：؟۔।॥،][\"”»’')\]]*$")


def ends_as_sentence(text: str) -> bool:
    """Return whether a paragraph ends with a mark that ends sentences or introduces a list."""
    return bool(_SENTENCE_END.search(text))


def decode(raw: bytes, name: str, keep_cr: bool = False) -> str:
    r"""Return UTF-8 text with ``\n`` line ends; with `keep_cr` unchanged, as llama.cpp reads it."""
    try:
        text = raw.decode("utf-8" if keep_cr else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadText(f"not UTF-8 at byte {error.start}", where=name) from error
    return text if keep_cr else text.replace("\r\n", "\n").replace("\r", "\n")


def lines(path: Path, bytes_max: int = LINE_BYTES_MAX) -> Iterator[str]:
    r"""Yield a file's lines with their ``\n``, without a BOM; long ones in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_read = n_lines = 0
    with opened.opened(path) as file:
        while True:
            raw = file.readline(bytes_max)
            try:
                line = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                n_pending = len(decoder.getstate()[0])  # of a character that a piece ended in
                byte = n_read - n_pending + error.start
                raise opened.not_utf8(path, byte, n_lines + 1) from error
            if not raw:
                return
            yield line if n_read else line.removeprefix("\ufeff")
            n_read += len(raw)
            n_lines += raw.endswith(b"\n")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of a file with a JSON value on each line; skip blank lines."""
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            try:
                value = from_json(line)
            except ValueError as error:
                what = f"line {number} is not a document: not valid JSON: {error}"
                command = opened.piped(path, f"sed {number}d")
                fix = f"{command} > {opened.copy_name(path, 'mended')}"
                raise BadText(what, where=path, fix=fix) from error
            yield number, value


def json_texts(path: Path, field: str = "text") -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield (line number, object, its text) of a file with a JSON object on each line."""
    for number, entry in json_lines(path):
        try:
            text = entry[field]
            if not isinstance(text, str):
                raise TypeError(f"its {field} is not a string")
            text.encode()  # JSON can spell half a character
        except (ValueError, KeyError, TypeError) as error:
            raise BadText(f"line {number} is not a document: {error}", where=path) from error
        yield number, entry, text


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Join lines to paragraphs: they end at a blank line or, without one, after a page."""
    pending: list[str] = []
    size = 0
    for line in lines:
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
    rows = (line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return re.sub(r"\n{3,}", JOINT, "\n".join(rows)).strip("\n")


def gathered(paragraphs: Iterable[str], chars: int = DOCUMENT_CHARS) -> Iterator[str]:
    """Join paragraphs to documents that end with the paragraph that reaches `chars`."""
    return map(JOINT.join, batches(paragraphs, chars, len))


def batches(items: Iterable[T], total: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield items in lists that end with the item with which their sizes reach `total`."""
    batch: list[T] = []
    n = 0
    for item in items:
        batch.append(item)
        n += size(item)
        if n >= total:
            yield batch
            batch, n = [], 0
    if batch:
        yield batch


def line(document: Document) -> str:
    """Return a document as one line of JSON."""
    return json.dumps(vars(document), ensure_ascii=False) + "\n"


def stream(path: Path) -> Iterator[Document]:
    """Yield the documents of JSON lines; only ``text`` is required, ``id`` is else the line's."""
    for number, entry, text in json_texts(path):
        document_id = str(entry.get("id") or f"{readable(path.stem)}/{number:06d}")
        source, licence = (str(entry.get(key, "unknown")) for key in ("source", "licence"))
        yield Document(document_id, text, source, licence)


def read(path: Path) -> list[Document]:
    """Return the documents of a file like heldout.jsonl; like `stream`, but no id may repeat."""
    by_id: dict[str, Document] = {}
    for document in stream(path):
        if document.id in by_id:
            raise BadText(f"the id {document.id!r} occurs twice", where=path)
        by_id[document.id] = document
    return list(by_id.values())
