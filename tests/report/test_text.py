"""Numbers and foreign text as a reader sees them."""

import math

import pytest

from imatrix_lab.core import format
from imatrix_lab.report import text


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (-0.0863123, -0.0924, -0.0801, "−0.0863"),
        (-0.0863123, -0.2, 0.0, "−0.086"),
        (44.4, 40.1, 49.0, "44.4"),
        (12_345.6, 12_000, 13_000, "12,346"),
        (0.123456, math.nan, math.nan, "0.1235"),
        (268_098_176.0, math.nan, math.nan, "268,098,176"),
        (math.nan, 0.0, 1.0, "–"),
        (math.inf, 0.0, 1.0, "–"),
        (-0.00001, -0.1, 0.1, "0.000"),
        (1e-7, 1e-7, 1e-7, "1e−07"),
    ],
)
def test_digits_follow_the_interval(value, low, high, said):
    assert format.number(value, low, high) == said


def test_differences_show_their_sign_and_zero_has_none():
    assert format.number(0.5, 0.4, 0.6, plus=True) == "+0.500"
    assert format.number(0.00001, -0.1, 0.1, plus=True) == "0.000"
    assert format.interval(-0.1, 0.1, plus=True) == "−0.100 … +0.100"
    assert format.interval(math.nan, 0.1) == ""


def test_probabilities_as_in_papers():
    found = [format.probability(p) for p in (0.00001, 0.04, 0.3, math.nan)]
    assert found == ["< 0.0001", "0.0400", "0.30", "–"]


def test_what_hides_is_named_and_what_scripts_need_stays():
    assert text.visible("a\u202eb\x00\ud800") == "a‹U+202E›b‹U+0000›‹U+D800›"
    joined = "ന്\u200d \u200c\n\t"
    assert text.visible(joined) == joined
    assert text.visible(3) == 3


def test_a_cut_says_how_much_there_was():
    assert text.cut("x" * 10, 10) == "x" * 10
    assert "1,000,000 characters" in text.cut("x" * 1_000_000, 10)


def test_nested_tables_become_one():
    assert text.flat({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}], "f": None, "g": True}) == {
        "a.b": "1", "d": "1, {'e': '2'}", "f": "", "g": "yes"
    }  # fmt: skip
