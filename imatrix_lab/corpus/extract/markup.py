"""Prose in HTML, and in XML of the same shape: the paragraphs, without what is around them.

The standard library's HTML parser reads XML too: it needs no end tags, and it expands no entity
that a document defines, so a hostile file cannot blow up.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser

from imatrix_lab.corpus.documents import decode, ends_as_sentence, gathered

_VOID = {
    "area", "base", "br", "col", "embed", "hr", "img", "include", "input", "link", "media",
    "meta", "param", "source", "track", "wbr",
}  # fmt: skip
_NEVER = {
    "script", "style", "head", "header", "footer", "nav", "aside", "form", "button", "pre",
    "table", "screen", "programlisting", "info", "toc", "title",
}  # fmt: skip
_REFERENCES = {"link", "xref"}


@dataclass(frozen=True)
class Format:
    """Which elements are paragraphs, and which to leave out: ``tag`` or ``tag.class``."""

    paragraphs: frozenset[str]
    skipped: frozenset[str] = frozenset()


HTML = Format(
    frozenset({"p", "dd", "li"}),
    frozenset({"div.toc", "div.navheader", "div.navfooter", "div.caption", "p.title", "span.MAC"}),
)
HANDBOOK = Format(frozenset({"div.para"}), frozenset({"div.legalnotice", "div.toc", "ul.docnav"}))
MALLARD = Format(frozenset({"p"}), frozenset({"credit", "mal:credit", "code"}))


def reader(form: Format) -> Callable[[str, bytes], Iterator[str]]:
    """Return the extractor for a format: a document a file, long ones cut after a page."""

    def extract(name: str, raw: bytes) -> Iterator[str]:
        return gathered(paragraphs(decode(raw, name), form))

    return extract


def paragraphs(text: str, form: Format) -> Iterator[str]:
    """Yield the paragraphs that end as sentences, white space collapsed."""
    parser = _Parser(form)
    parser.feed(text)
    parser.close()
    parser.end_paragraph()
    yield from filter(ends_as_sentence, parser.paragraphs)


class _Parser(HTMLParser):
    """Gathers the text of paragraphs; one that begins inside another ends it."""

    def __init__(self, form: Format):
        super().__init__(convert_charrefs=True)
        self.form = form
        self.paragraphs: list[str] = []
        self._open: list[tuple[str, str]] = []
        self._n_open: Counter[str] = Counter()
        self._text: list[str] = []
        self._hole = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            if tag == "br" and self._text:
                self._text.append(" ")
            return
        classes = (dict(attrs).get("class") or "").split()
        names = {tag, *(f"{tag}.{c}" for c in classes)}
        role = ""
        if tag in _NEVER or names & self.form.skipped:
            role = "skip"
        elif names & self.form.paragraphs:
            role = "paragraph"
            self.end_paragraph()
        self._open.append((tag, role))
        self._n_open[role] += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a reference whose text the format fills in later: its paragraph has a hole."""
        if tag in _REFERENCES and self._text:
            self._hole = True

    def handle_endtag(self, tag: str) -> None:
        for i in reversed(range(len(self._open))):
            if self._open[i][0] == tag:
                closed = [role for _, role in self._open[i:]]
                if "paragraph" in closed:
                    self.end_paragraph()
                self._n_open.subtract(closed)
                del self._open[i:]
                return

    def handle_data(self, data: str) -> None:
        if self._n_open["paragraph"] and not self._n_open["skip"]:
            self._text.append(data)

    def end_paragraph(self) -> None:
        """Add the gathered text to the paragraphs."""
        text = re.sub(r"\s+", " ", "".join(self._text)).strip()
        if text and not self._hole:
            self.paragraphs.append(text)
        self._text, self._hole = [], False
