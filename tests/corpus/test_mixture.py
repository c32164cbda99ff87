"""What a user may name as text."""

import pytest

from imatrix_lab.corpus import mixture
from imatrix_lab.errors import UsageError


def shares(word):
    return {p.label: pytest.approx(p.weight) for p in mixture.parse(word).parts}


def test_a_language_is_a_mixture_of_one():
    found = mixture.parse("no")
    assert (found.label, found.name) == ("nb", "Norwegian Bokmål")
    assert shares("no") == {"nb": 1}


def test_shares_are_of_the_whole():
    found = mixture.parse("nb=3,en=1")
    assert shares("nb=3 en=1") == {"nb": 0.75, "en": 0.25}
    assert found.label == "nb75-en25"
    assert found.name == "75 % Norwegian Bokmål, 25 % English"


def test_ten_languages_in_equal_parts():
    found = mixture.parse("multi10")
    assert len(found.parts) == 10 and {p.weight for p in found.parts} == {0.1}
    assert {p.label for p in found.parts} >= {"en", "sw", "zh", "xh", "ha"}
    assert found.label == "multi10"


def test_controls():
    assert shares("random-tokens=0.5 shuffled:nb=0.5") == {"random-tokens": 0.5, "shuffled-nb": 0.5}
    assert mixture.parse("shuffled:nb").parts[0].shuffled
    assert mixture.parse("code").parts[0].language.labels == ()


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("nb=0,en=1", "no positive number"),
        ("nb=-1,en=2", "no positive number"),
        ("nb=inf,en=2", "no positive number"),
        ("nb=much", "no positive number"),
        ("nb=0.5,en", "'en' has no share"),
        ("nb=0.5,no=0.5", "nb is named twice"),
        ("sorted:nb", "no control is called 'sorted'"),
        ("shuffled:xx-none", "no corpus for a language"),
        ("klingonsk", "no corpus for a language"),
        (" ", "which text"),
    ],
)
def test_what_cannot_be_meant(word, what):
    with pytest.raises(UsageError, match=what):
        mixture.parse(word)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name = 'x'\n[share]\nnb = 1", "unknown key 'share'; 'shares'?"),
        ("name = 'x'", "missing key 'shares'"),
        ("name = ", "not valid TOML"),
        ("name = 'x'\n[shares]\nnb = 'a'", "shares.nb: 'a' is not a number"),
        ("name = 'x'\n[shares]\nnb = 0", "positive"),
        ("name = 'x'\n[shares]", "positive"),
    ],
)
def test_a_damaged_mixture_is_named(text, what, tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.setattr(mixture, "folder", lambda: tmp_path)
    with pytest.raises(UsageError, match=what) as caught:
        mixture.parse("mine")
    assert "mine.toml" in str(caught.value)
