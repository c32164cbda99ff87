"""What Unicode normalisation changes, by script."""

import pytest

from imatrix_lab.corpus.clean import normalise
from imatrix_lab.corpus.clean.rules import Rules
from tests.corpus.clean.one_step import PROSE, after


@pytest.mark.parametrize(
    ("script", "before", "expected"),
    [
        ("Latn", "Cafe\u0301 a\u030a", "Café å"),
        ("Latn", "so\xadme\u200b thing\ufeff\u2060", "some thing"),
        ("Latn", "a\u200db and \u200e(c)\u202c", "ab and (c)"),
        ("Latn", "family 👨\u200d👩\u200d👧 here", "family 👨\u200d👩\u200d👧 here"),
        ("Latn", "eﬃcient ﬂow, x² and ½", "efficient flow, x² and ½"),
        ("Latn", "1\xa0000  kroner \n og", "1 000 kroner\nog"),
        ("Latn", "bell\x07 icon\ue001 half\ud800", "bell icon half"),
        ("Jpan", "ＡＢＣ１２３、（全角）\u3000です", "ＡＢＣ１２３、（全角）\u3000です"),
        ("Arab", "كـــتاب ١٤٤٢ هـ", "كتاب ١٤٤٢ هـ"),
        ("Arab", "می\u200cروم \u200cو\u200c\u200cن", "می\u200cروم و\u200cن"),
        ("Deva", "क्\u200dष और क्\u200cष", "क्\u200dष और क्\u200cष"),
        ("Deva", "क\u200dख", "कख"),
        ("Thai", "ภาษา\u200bไทย", "ภาษา\u200bไทย"),
        ("Beng", "র\u200d্যাম", "র\u200d্যাম"),
    ],
)
def test_unicode_by_script(script: str, before: str, expected: str) -> None:
    text, report = after(normalise.normalise, before, Rules(script, ("xx",)))
    assert text == expected
    assert bool(report.counts) == (before != expected or before.count("  ") > 0)


def test_malayalam_chillus_become_atomic_and_nta_stays_as_written() -> None:
    rules = Rules("Mlym", ("ml",))
    old = "".join(f"{c}\u0d4d\u200d " for c in normalise.CHILLU)
    text, report = after(normalise.normalise, old, rules)
    assert text == "ൺ ൻ ർ ൽ ൾ ൿ"
    assert report.counts["it", "chillu", "changes"] == 6
    for word in ("എന്റെ", "എൻ്റെ", "എൻറെ"):
        assert after(normalise.normalise, word, rules)[0] == word
    assert after(normalise.normalise, "എന്\u200dറെ", rules)[0] == "എൻറെ"
    # ZWNJ parts a conjunct inside a word, and means nothing after a vowel or at the end
    assert (
        after(normalise.normalise, "ടെസ്റ്റ്\u200cഡി\u200cയ ന്\u200c.", rules)[0] == "ടെസ്റ്റ്\u200cഡിയ ന്."
    )


def test_lost_characters_cost_the_paragraph() -> None:
    text, report = after(normalise.normalise, f"bl\ufffdb\n\n{PROSE}")
    assert text == PROSE
    assert report.counts["it", "replacement character", "paragraphs_dropped"] == 1
