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
    ("word", "named", "fix"),
    [
        ("nb=0,en=1", "'0'", "nb=0.5"),
        ("nb=-1,en=2", "'-1'", "nb=0.5"),
        ("nb=inf,en=2", "'inf'", "nb=0.5"),
        ("nb=much", "'much'", "nb=0.5"),
        ("nb=0.5,en", "'en'", "en=0.25"),
        ("nb=0.5,no=0.5", "nb", ""),
        ("sorted:nb", "'sorted'", "shuffled:nb"),
        ("shuffled:xx-none", "'xx-none'", "one of: "),
        ("klingonsk", "'klingonsk'", "one of: "),
        (" ", "", "nb=0.75,en=0.25"),
    ],
)
def test_what_is_not_a_mixture(word, named, fix):
    with pytest.raises(UsageError) as caught:
        mixture.parse(word)
    assert named in caught.value.what
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name = 'x'\n[share]\nnb = 1", "'share'; 'shares'?"),
        ("name = 'x'", "'shares'"),
        ("name = ", "TOML"),
        ("name = 'x'\n[shares]\nnb = 'a'", "shares.nb: 'a'"),
        ("name = 'x'\n[shares]\nnb = 0", "positive"),
        ("name = 'x'\n[shares]", "positive"),
    ],
)
def test_a_damaged_mixture_is_named(text, what, tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.setattr(mixture, "files", lambda: {"mine": tmp_path / "mine.toml"})
    with pytest.raises(UsageError, match=what) as caught:
        mixture.parse("mine")
    assert caught.value.where == str(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("word", "what"),
    [("nofile.jsonl", "no such file"), ("no/folder", "no such file"), (".", "did not make this")],
)
def test_a_path_to_no_text_is_no_unknown_language(word, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=what) as caught:
        mixture.parse_or_path(word, "calibration.txt")
    assert caught.value.where == word


@pytest.mark.parametrize(("folder", "code"), [("nb", "nb"), ("norsk", "nb")])
def test_a_folder_beside_that_is_called_as_a_language(folder, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    assert mixture.parse_or_path(folder, "calibration.txt") == mixture.parse(code)


def test_only_languages_of_ours_and_their_mixtures_are_languages():
    known = ("nb", "code", "multi10", "nb-en", "nb75-en25", "nb33.3-en66.7", "nb-en-by-tokens")
    assert all(map(mixture.is_language, known))
    others = ("", "nb2", "nb-utf8", "whole", "whole-whole", "nb-whole", "random-tokens")
    assert not any(map(mixture.is_language, (*others, "shuffled-nb", "nb-pooled")))
