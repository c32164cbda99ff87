"""Short answers and numbers, in several languages and scripts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imatrix_lab.tasks.items import Item
from imatrix_lab.tasks.locale import Numbers, get_locale
from imatrix_lab.tasks.scorers import free_form, numbers, score
from imatrix_lab.types import Generated

LOCALES = [get_locale(code) for code in ("en", "nb", "ja")]
NB = Numbers(",", ". ")


@pytest.mark.parametrize(
    ("code", "answer", "golds", "right"),
    [
        ("en", "The capital of Norway is Oslo.", ["Oslo"], True),
        ("en", "It is not Oslo.\nThe answer is Bergen", ["Trondheim"], False),
        ("en", "Steps.\n12 + 5 = 17", ["17"], True),
        ("en", "There were 1,200 of them", ["1200"], True),
        ("en", "It is 7", ["17"], False),
        ("nb", "Hovedstaden i Norge er Oslo.", ["Oslo"], True),
        ("nb", "Det ble 1 234,5 kroner", ["1234,5"], True),
        ("nb", "Svaret er etter krigen", ["krigen"], True),
        ("nn", "Hovudstaden i Noreg er Oslo.", ["Oslo"], True),
        ("de", "Die Antwort lautet 1.500 Euro", ["1500"], True),
        ("ml", "ഇന്ത്യയുടെ തലസ്ഥാനം ന്യൂഡൽഹി ആണ്", ["ന്യൂഡൽഹി"], True),
        ("ml", "ഉത്തരം: ൧൨", ["12"], True),
        ("hi", "उत्तर: १२", ["12"], True),
        ("ar", "الجواب هو ١٢٫٥", ["12.5"], True),
        ("zh", "答案是北京。", ["北京"], True),
        ("en", "B", ["b"], True),
        ("en", "", ["Oslo"], False),
    ],
)
def test_matches(code, answer, golds, right):
    assert free_form.match(answer, golds, get_locale(code)).is_right is right


def test_key_is_what_follows_the_last_word():
    en = get_locale("en")
    assert free_form.key_parts("So the answer is\nIt is clear: the result is 5.", en)[-1] == "5"
    nb = get_locale("nb")
    assert free_form.key_parts("Etter krigen er byen Oslo", nb) == ("byen oslo",)  # not «ett-er»


@pytest.mark.parametrize(
    ("text", "decimal", "groups", "value"),
    [
        ("12", ".", ",", 12),
        ("1,234.5", ".", ",", 1234.5),
        ("1.234,5", ",", ". ", 1234.5),
        ("1\u202f234,5", ",", ". ", 1234.5),
        ("1.5", ",", ". ", 1.5),
        ("1.500", ",", ". ", 1500),
        ("٣٤", ".", ",", 34),
        ("−3", ".", ",", -3),
        ("1e3", ".", ",", 1000),
        ("1e999", ".", ",", None),
        ("12,34", ".", ",", None),
        ("twelve", ".", ",", None),
        ("", ".", ",", None),
    ],
)
def test_numbers(text, decimal, groups, value):
    assert numbers.value(text, Numbers(decimal, groups)) == value


def test_the_number_a_solution_ends_with():
    assert numbers.answer("5 + 6 = 11. Svaret er 11 epler, ikke 12.", ["svaret er"], NB) == 11
    assert numbers.answer("First 5, then 6.", ["answer is"], numbers.ENGLISH) == 6
    assert numbers.answer("none", ["answer is"], numbers.ENGLISH) is None


@given(st.text(), st.lists(st.text(), max_size=3))
def test_any_text_gives_a_verdict(answer, golds):
    for locale in LOCALES:
        assert free_form.match(answer, golds, locale).is_right in (True, False)


@given(st.integers(-(10**9), 10**9))
def test_written_numbers_are_read_back(number):
    assert numbers.value(f"{number:,}") == number
    assert numbers.value(f"{number:,}".replace(",", "."), NB) == number
    assert number in numbers.find(f"a {number:,} b")


def test_golds_of_numbers_are_written_alike_in_every_language():
    item = Item("1", "de", "", "", "?", (), ("1,000.5",), None, "", {})
    answer = Generated("1", "Die Antwort ist 1.000,5", 9, "eos")
    assert score.of_text(item, answer, "number", get_locale("de")).score == 1
