"""Whether text is in the language asked for."""

import pytest

from imatrix_lab.tasks import locale
from imatrix_lab.tasks.scorers import language
from tests import real_data

SAID = {
    "nb": "Jeg vet ikke hva dette er, men det er noe fra byen.",
    "nn": "Eg veit ikkje kva dette er, men det er noko frå byen.",
    "da": "Jeg ved ikke hvad det er, men det er noget fra byen.",
    "en": "I do not know what this is, but it is something from the town.",
    "zh": "我不知道这是什么，但它来自那个城市。",
}


@pytest.mark.parametrize("wanted", SAID)
@pytest.mark.parametrize("said", SAID)
def test_neighbours_are_told_apart(said, wanted):
    assert language.is_in(SAID[said], locale.get(wanted)) == (said == wanted)


def test_shares_of_lines_and_words():
    found = language.share(f"{SAID['nb']}\n\nOK!\n{SAID['en']}\n1.\n{SAID['nb']}", locale.get("nb"))
    assert found is not None
    assert (found.n_lines, found.lines) == (3, pytest.approx(2 / 3))
    assert found.words == pytest.approx(24 / 38)


def test_words_in_latin_script_are_outside_of_other_scripts():
    line = "ഇത് കേരളത്തിലെ ഒരു വലിയ city center ആണ്"
    found = language.share(line, locale.get("ml"))
    assert found is not None
    assert (found.lines, found.words) == (1, pytest.approx(5 / 7))  # vowel signs split no word
    found = language.share("我不知道这是什么，但它来自那个 city。", locale.get("zh"))
    assert found is not None
    assert found.words == pytest.approx(14 / 15)


def test_short_answers_and_none():
    assert language.share("", locale.get("nb")) is None
    assert language.share("42 …\n!", locale.get("nb")) is None
    found = language.share("Ja!", locale.get("nb"))
    assert found is not None and found.n_lines == 1


@pytest.mark.parametrize(
    ("file", "code", "least"),
    [("nob", "nb", 0.95), ("nno", "nn", 0.9), ("deu", "de", 0.99), ("mal", "ml", 0.99)],
)
def test_news(file, code, least):
    path = real_data.need(f"ntrex/{file}.txt")
    lines = path.read_text(encoding="utf-8").splitlines()[:200]
    one = locale.get(code)
    assert sum(language.is_in(line, one) for line in lines) / len(lines) >= least
