"""What every reader of text needs: decoding, and paragraphs gathered into documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from imatrix_lab.errors import BadText

JOINT = "\n\n"
DOCUMENT_CHARS_MIN = 400
DOCUMENT_CHARS = 3000
"""A document made of loose paragraphs ends when it has so many characters: about a page."""

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
        raise BadText(
            f"not UTF-8 at byte {error.start}", where=name, fix=f"iconv -t UTF-8 {name}"
        ) from error
    return text if keep_cr else text.replace("\r\n", "\n").replace("\r", "\n")


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
