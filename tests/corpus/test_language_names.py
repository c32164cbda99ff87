"""What users call languages."""

import pytest

from imatrix_lab.corpus import languages, mixture
from imatrix_lab.errors import UsageError

WORDS = {
    "nb": "nb_NO nb-NO nb_NO.UTF-8 nb_NO.utf8 no_NO nob nor norsk Norsk Bokmål bokmal bokmaal"
    " Norwegian",
    "nn": "nn_NO nno nynorsk",
    "zh": "zh-CN zh_Hans zh-SG zho cmn Mandarin Chinese 中文 cn",
    "de": "de_AT@euro deu ger deutsch German tysk",
    "ml": "ml_IN mal മലയാളം malayalam",
    "sr": "sr_RS@latin sr-Latn serbian",
    "ja": "jp ja_JP.eucJP 日本語 japansk",
    "el": "gr ell gre greek Ελληνικά",
    "es": "es-419 espanol castellano spansk",
    "pt": "pt_BR por português",
    "cs": "cz", "da": "dk", "uk": "ua", "vi": "vn", "he": "iw", "ar": "arb ar_EG", "sw": "swh",
    "nl": "Flemish",
}  # fmt: skip


@pytest.mark.parametrize(("word", "code"), [(w, c) for c, ws in WORDS.items() for w in ws.split()])
def test_words_for_a_language(word: str, code: str) -> None:
    assert languages.get(word).code == code


@pytest.mark.parametrize("word", ["Norwegian Bokmål", "Simplified Chinese", "Brazilian Portuguese"])
def test_names_of_several_words_are_one_text(word: str) -> None:
    (part,) = mixture.parse(word).parts
    assert part.weight == 1


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("kr", "Kanuri; for Korean: ko"),
        ("se", "Northern Sami; for Swedish: sv"),
        ("zh_Hant", "Traditional.*zh is Chinese .simplified"),
        ("zh-TW", "Taiwan"),
        ("sr-Cyrl", "Cyrillic.*sr is Serbian .Latin"),
        ("Farsi", "fa is Persian"),
        ("cantonese", "yue is Cantonese"),
        ("spanihs", "near: es"),
    ],
)
def test_what_else_a_word_means_is_said(word: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        languages.get(word)


@pytest.mark.parametrize(
    "word", ["nb.txt", "my-text.txt", "german-wiki", "C", "POSIX", "xx", "x" * 400]
)
def test_files_and_other_words_are_no_languages(word: str) -> None:
    with pytest.raises(UsageError):
        languages.get(word)
    assert languages.code(word) == word


def test_parts_of_a_mixture_too() -> None:
    assert mixture.parse("nb_NO=0.75,engelsk=0.25").label == "nb75-en25"


def test_a_file_beats_a_guess_and_a_code_beats_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("norsk", "nb"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    assert mixture.parse_or_path("norsk", "x") == type(tmp_path)("norsk")
    assert not isinstance(mixture.parse_or_path("nb", "x"), type(tmp_path))


@pytest.mark.parametrize("word", ["\ud800", "\0", "a\0b", "\xff", "x" * 70_000, "a-" * 9000])
def test_words_that_no_language_has(word: str) -> None:
    with pytest.raises(UsageError):
        languages.get(word)
