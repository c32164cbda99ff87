"""Machine-written anthologies: one text file of articles under headings."""

import re
from collections.abc import Iterator

from imatrix_lab.corpus import documents
from imatrix_lab.corpus.documents import DOCUMENT_CHARS, DOCUMENT_CHARS_MIN, JOINT

_SEPARATOR = re.compile(r"[-*_=\s]+")
_NUMBERED = re.compile(
    r"[#*\s]*(?:(?:\S+\s+){0,2}[\d०-९০-৯]+\s*[.):]\s|第[一二三四五六七八九十]+部分)"
)
_MARKS = re.compile(r"^#+\s*|\*\*")


def extract(name: str, raw: bytes) -> Iterator[str]:
    """Yield the articles of a file."""
    return articles(documents.decode(raw, name))


def articles(text: str) -> Iterator[str]:
    """Yield the articles of an anthology, which begin at its headings.

    What is before the first heading is the assistant talking about the task, and is dropped, as
    are separators and the numbered headings that repeat the prompt.
    """
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text)]
    paragraphs = [p for p in paragraphs if p and not _SEPARATOR.fullmatch(p)]
    first = next((i for i, p in enumerate(paragraphs) if is_heading(p)), 0)
    pending: list[str] = []
    size = 0
    for paragraph in paragraphs[first:]:
        heading = is_heading(paragraph)
        if (heading and size >= DOCUMENT_CHARS_MIN) or size >= DOCUMENT_CHARS:
            yield JOINT.join(pending)
            pending, size = [], 0
        if heading and _NUMBERED.match(paragraph):
            continue
        clean = "\n".join(_MARKS.sub("", line).rstrip() for line in paragraph.split("\n"))
        pending.append(clean)
        size += len(clean)
    if size >= DOCUMENT_CHARS_MIN:
        yield JOINT.join(pending)


def is_heading(paragraph: str) -> bool:
    """Return whether a paragraph is a heading: one short line that does not end like a sentence."""
    if "\n" in paragraph or len(paragraph) > 120:
        return False
    if paragraph.startswith("#") or (paragraph.startswith("**") and paragraph.endswith("**")):
        return True
    return not documents.ends_as_sentence(paragraph)
