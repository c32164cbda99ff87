"""Source code as text, for a control: calibration text in no natural language."""

import re
from collections.abc import Iterator

from imatrix_lab.corpus.documents import DOCUMENT_CHARS_MIN, JOINT, decode, gathered, tidy


def extract(name: str, raw: bytes) -> Iterator[str]:
    """Yield a module in pieces of about a page, cut at blank lines between definitions."""
    text = tidy(decode(raw, name))
    if len(text) >= DOCUMENT_CHARS_MIN:
        yield from gathered(re.split(rf"{JOINT}(?=\S)", text))
