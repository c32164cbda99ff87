"""Whether text is in the language asked for."""

import pytest

from imatrix_lab.tasks.locale import get_locale
from imatrix_lab.tasks.scorers import language
from tests import real_data

TEXTS = {
    "nb": "Jeg vet ikke hva dette er, men det er noe fra byen.",
    "nn": "Eg veit ikkje kva dette er, men det er noko frå byen.",
    "da": "Jeg ved ikke hvad det er, men det er noget fra byen.",
    "en": "I do not know what this is, but it is something from the town.",
    "zh": "我不知道这是什么，但它来自那个城市。",
}


@pytest.mark.parametrize("expected", TEXTS)
@pytest.mark.parametrize("code", TEXTS)
def test_neighbours_are_told_apart(code, expected):
    assert language.is_in(TEXTS[code], get_locale(expected)) == (code == expected)


def test_shares_of_lines_and_words():
    share = language.share(
        f"{TEXTS['nb']}\n\nOK!\n{TEXTS['en']}\n1.\n{TEXTS['nb']}", get_locale("nb")
    )
    assert share is not None
    assert (share.n_lines, share.lines) == (3, pytest.approx(2 / 3))
    assert share.words == pytest.approx(24 / 38)


def test_words_in_latin_script_are_outside_of_other_scripts():
    line = "ഇത് കേരളത്തിലെ ഒരു വലിയ city center ആണ്"
    share = language.share(line, get_locale("ml"))
    assert share is not None
    assert (share.lines, share.words) == (1, pytest.approx(5 / 7))  # vowel signs split no word
    share = language.share("我不知道这是什么，但它来自那个 city。", get_locale("zh"))
    assert share is not None
    assert share.words == pytest.approx(14 / 15)


def test_short_answers_and_none():
    assert language.share("", get_locale("nb")) is None
    assert language.share("42 …\n!", get_locale("nb")) is None
    share = language.share("Ja!", get_locale("nb"))
    assert share is not None and share.n_lines == 1


@pytest.mark.parametrize(
    ("file", "code", "least"),
    [("nob", "nb", 0.95), ("nno", "nn", 0.9), ("deu", "de", 0.99), ("mal", "ml", 0.99)],
)
def test_news(file, code, least):
    path = real_data.need(f"ntrex/{file}.txt")
    lines = path.read_text(encoding="utf-8").splitlines()[:200]
    locale = get_locale(code)
    assert sum(language.is_in(line, locale) for line in lines) / len(lines) >= least
