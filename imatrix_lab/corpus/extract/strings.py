"""Sentences among the strings of a user interface.

Languages with little other text have translated programs. Most of their strings are labels; kept
are sentences without placeholders, in the order of their file, which is by topic, gathered to
documents of about a page.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator

from imatrix_lab.corpus.documents import gathered

STRING_CHARS_MIN = 40
COMMAS_MAX = 7
"""More commas in a single sentence mean a list of search words."""
DOCUMENT_CHARS = 2000

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,300}>")
_PRODUCT = re.compile(r"%?PRODUCTNAME|\$\[officename\]")
"""The one placeholder with a fixed text; it is frequent."""
_PLACEHOLDER = re.compile(
    r"[${}<>|=@]|%\(?\w|%%|#\w+#|\[\[|\]\]|\\[nt]|\w_\w|__|''|(?:^|\s)[*#-]+\s|&[a-z]+;|https?:|\w\.\w+\.\w"
)
_END = re.compile(r"[^.…][.!?。！？।॥][\"”»’')\]]*$")
"""How a sentence ends; with dots it is a menu entry, with a colon a label."""

_ACCELERATOR = re.compile(r"\([&_~]\w\)|[&~](?=\w)|\x01|\x04")


def reader(strings: Callable[[str, bytes], Iterator[str]]) -> Callable[[str, bytes], Iterator[str]]:
    """Return the extractor for a format whose `strings` these are."""
    return lambda name, raw: documents(strings(name, raw))


def documents(strings: Iterable[str]) -> Iterator[str]:
    """Yield documents of the strings that are sentences, each of them once."""
    return gathered(_sentences(strings), DOCUMENT_CHARS)


def _sentences(strings: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for text in (sentence(line) for raw in strings for line in raw.split("\n\n")):
        if text and text not in seen:
            seen.add(text)
            yield text


def sentence(raw: str) -> str:
    """Return a string as prose, without tags and accelerators, or "" if it is not a sentence."""
    text = html.unescape(_TAG.sub("", _PRODUCT.sub("LibreOffice", raw)))
    text = re.sub(r"\s+", " ", _ACCELERATOR.sub("", text)).strip()
    if len(text) < STRING_CHARS_MIN or not _END.search(text) or _PLACEHOLDER.search(text):
        return ""
    return "" if text.count(",") > COMMAS_MAX and ". " not in text else text
