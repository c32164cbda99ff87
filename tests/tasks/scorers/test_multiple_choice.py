"""Which option an answer chose: cases of our own, and the original parser's verdicts."""

import json

import pytest

from imatrix_lab.tasks.locale import get_locale, load_locales
from imatrix_lab.tasks.scorers import free_form, multiple_choice
from tests import real_data

OPTIONS = ["a cat", "a dog", "a fish", "none of them"]


def option(answer, options=OPTIONS, code="en"):
    place = multiple_choice.read(answer, options, get_locale(code)).option
    return None if place is None else multiple_choice.LETTERS[place]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        (" C)\n\nBecause …", "C"),
        ("(D)", "D"),
        ("I think (A) is wrong. The answer is (C).", "C"),
        ("A cat would not. The answer is B", "B"),
        ("The answer is \\boxed{B}", "B"),
        ("**C**", "C"),
        ("**C.** It swims.", "C"),
        ("`D`", "D"),
        ("It must be a dog, of course.", "B"),
        ("Ｂ", "B"),
        ("E", None),  # not an option
        ("It was 20 °C here", None),
        ("It was 20 ℃ here", None),
        ("I cannot say.", None),
        ("It is a dog or a fish.", None),  # two are named
        ("", None),
        ("\x00\ud800 ???", None),
    ],
)
def test_english(answer, letter):
    assert option(answer) == letter


@pytest.mark.parametrize(
    ("code", "answer", "letter"),
    [
        ("nb", "En katt kan ikke det. Svaret er B.", "B"),
        ("nn", "Ein katt kan ikkje det. Rett svar er **C**.", "C"),
        ("de", "Die Antwort lautet (D).", "D"),
        ("ml", "ശരിയായ ഉത്തരം: B", "B"),
        ("zh", "答案是C。", "C"),
        ("ja", "正解はＢです", "B"),
        ("ar", "الجواب هو B", "B"),
        ("hi", "उत्तर है: D", "D"),
        ("ko", "답은 B입니다", "B"),
        ("ml", "ഉത്തരം: Bആണ്", None),
        ("nb", "Svaret er Bærum.", None),
        ("nb", "**D** En katt (A) kan ikke det.", "D"),
        ("nb", "Det er ikke B, men C.", "C"),
        ("nb", "Ikke (A), men (C).", "C"),
        ("it", "A mio parere la C", "C"),
        ("it", "A. un gatto", "A"),
        ("it", "La A", "A"),
        ("pt", "O cão corre, D", "D"),
        ("es", "No A, sino B", "B"),
        ("fr", "**B** A mon avis.", "B"),
    ],
)
def test_phrases_of_other_languages(code, answer, letter):
    assert option(answer, code=code) == letter


def test_every_language_announces_a_letter():
    for locale in load_locales().values():
        phrases = locale.answer.letter
        assert all(option(f"{phrase} C", code=locale.code) == "C" for phrase in phrases)


def test_an_option_inside_another_does_not_count():
    assert option("it is a dog and a cat", ["a dog", "a dog and a cat"]) == "B"


def test_options_with_their_own_letters():
    assert option("The town is a small one.", ["(A)a small one", "(B)a large one"]) == "A"


def lines(name):
    file = real_data.need(f"mixeval/{name}")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_original_multiple_choice_parser():
    """On what it parsed. Where it guessed we read a letter in bold, or nothing."""
    golden = {g["id"]: g["option"] for g in lines("golden.multiple-choice.jsonl")}
    en = get_locale("en")
    n_same, differ, n_read, n_unread = 0, {}, 0, 0
    for answer in lines("gemma-1.1-7b-it.multiple-choice.jsonl"):
        reading = multiple_choice.read(answer["response"], answer["options"], en)
        letter = None if reading.option is None else multiple_choice.LETTERS[reading.option]
        if golden[answer["id"]] is None:
            n_unread += letter is None
            n_read += letter is not None
            assert reading.how in ("marked", "text", "")
        elif letter == golden[answer["id"]]:
            n_same += 1
        else:
            differ[answer["id"]] = letter
    assert differ == {"844": "B", "1367": "C", "1506": "D", "778": "D", "874": "D", "1293": None,
                      "1107": "A"}  # fmt: skip
    assert (n_same, n_read, n_unread) == (1737, 249, 3)


def test_the_original_free_form_rule():
    golden = {g["id"]: bool(g["correct"]) for g in lines("golden.free-form.jsonl")}
    en = get_locale("en")
    same = [
        free_form.match(a["response"], a["target"], en).is_right == golden[a["id"]]
        for a in lines("gemma-1.1-7b-it.free-form.jsonl")
    ]
    assert sum(same) / len(same) >= 0.995
