"""Sentences among the strings of a user interface.

Where a language has little else to offer, its translated programs have. Most of their strings
are labels; those that are kept are sentences without placeholders, in the order of their file,
which is by topic, gathered to documents of about a page.
"""

import html
import re
from collections.abc import Iterable, Iterator

from imatrix_lab.corpus.documents import gathered

STRING_CHARS_MIN = 40
COMMAS_MAX = 7
"""More than these without another sentence are a list of search words."""
DOCUMENT_CHARS = 2000

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,300}>")
_PRODUCT = re.compile(r"%?PRODUCTNAME|\$\[officename\]")
"""The one placeholder whose text is always the same, and frequent."""
_PLACEHOLDER = re.compile(
    r"[${}<>|=@]|%\(?\w|%%|#\w+#|\[\[|\]\]|\\[nt]|\w_\w|__|''|(?:^|\s)[*#-]+\s|&[a-z]+;|https?:|\w\.\w+\.\w"
)
_END = re.compile(r"[^.…][.!?。！？।॥][\"”»’')\]]*$")
"""Of a sentence: what ends with dots is a menu entry, with a colon a label."""

_ACCELERATOR = re.compile(r"\([&_~]\w\)|[&~](?=\w)|\x01|\x04")


def documents(strings: Iterable[str]) -> Iterator[str]:
    """Yield documents made of the strings that are sentences, each of them once."""
    return gathered(_sentences(strings), DOCUMENT_CHARS)


def _sentences(strings: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for raw in strings:
        for line in raw.split("\n\n"):
            text = sentence(line)
            if text and text not in seen:
                seen.add(text)
                yield text


def sentence(raw: str) -> str:
    """Return a string as prose, without tags and accelerators; nothing if it is none."""
    text = html.unescape(_TAG.sub("", _PRODUCT.sub("LibreOffice", raw)))
    text = _ACCELERATOR.sub("", text)
    text = re.sub(r"\s+", " ", text).strip()
    whole = len(text) >= STRING_CHARS_MIN and _END.search(text)
    if text.count(",") > COMMAS_MAX and ". " not in text:
        return ""
    return text if whole and not _PLACEHOLDER.search(text) else ""
