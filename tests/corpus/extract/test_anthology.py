"""Taking an anthology apart."""

import pytest

from imatrix_lab.corpus.documents import DOCUMENT_CHARS
from imatrix_lab.corpus.extract import anthology

BODY = "Havet er stort og kaldt, og ingen vet hva som finnes der nede. " * 10


@pytest.mark.parametrize(
    "chatter",
    [
        "Absolutt. Her er teksten du ba om, delt i ti emner.",
        "Gjerne! Her er den.\n\n---",
        "Jeg forstår.\n\nHer er teksten:\n\n***",
    ],
)
@pytest.mark.parametrize("heading", ["### **1. Hav (~3000 ord)**", "Hav og vann", "**Hav**"])
def test_what_stands_before_the_first_heading_is_dropped(chatter, heading):
    (text,) = anthology.articles(f"{chatter}\n\n{heading}\n\n{BODY}")
    assert "ba om" not in text and "Her er" not in text and "---" not in text
    assert "3000" not in text and "*" not in text and "#" not in text
    assert text.endswith(BODY.strip())


@pytest.mark.parametrize(
    "heading", ["1. Hav", "Bölüm 1: Deniz", "भाग १: समुद्र", "第一部分：海", "Section 1 : La mer"]
)
def test_numbered_headings_repeat_the_prompt_and_go(heading):
    (text,) = anthology.articles(f"Ja.\n\n{heading}\n\n{BODY}")
    assert text == BODY.strip()


def test_a_heading_begins_a_document_and_short_ones_join():
    found = list(anthology.articles(f"Hav\n\n{BODY}\n\nIs\n\nKort.\n\nSnø\n\n{BODY}"))
    assert [f.split("\n")[0] for f in found] == ["Hav", "Is"]
    assert "Snø" in found[1]


def test_long_stretches_without_headings_end_at_a_paragraph():
    found = list(anthology.articles("Hav\n\n" + "\n\n".join([BODY] * 20)))
    assert len(found) > 3
    assert all(len(f) < DOCUMENT_CHARS + 2 * len(BODY) for f in found)
