"""Numbers, sizes and durations as text."""

import math

import pytest

from imatrix_lab.core import format


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (-0.0863123, -0.0924, -0.0801, "−0.0863"),
        (-0.0863123, -0.2, 0.0, "−0.086"),
        (44.4, 40.1, 49.0, "44.4"),
        (12_345.6, 12_000, 13_000, "12,346"),
        (0.123456, math.nan, math.nan, "0.1235"),
        (268_098_176.0, math.nan, math.nan, "268,098,176"),
        (math.nan, 0.0, 1.0, "–"),
        (math.inf, 0.0, 1.0, "∞"),
        (-0.00001, -0.1, 0.1, "0.000"),
        (1e-7, 1e-7, 1e-7, "1e−07"),
    ],
)
def test_digits_follow_the_interval(value, low, high, text):
    assert format.number(value, low, high) == text


def test_differences_show_their_sign_and_zero_has_none():
    assert format.number(0.5, 0.4, 0.6, plus=True) == "+0.500"
    assert format.number(0.00001, -0.1, 0.1, plus=True) == "0.000"
    assert format.interval(-0.1, 0.1, plus=True) == "−0.100 … +0.100"
    assert format.interval(math.nan, 0.1) == ""


def test_probabilities_as_in_papers():
    texts = [format.probability(p) for p in (0.00001, 0.04, 0.3, math.nan)]
    assert texts == ["< 0.0001", "0.0400", "0.30", "–"]
    assert format.probability(0.0123, "= ") == "= 0.0123"
    assert format.probability(0.00001, "= ") == "< 0.0001"


@pytest.mark.parametrize(
    ("value", "std_error", "text"),
    [
        (-0.0123456, 0.0011, "−0.0123"),
        (0.5, 0.1, "0.50"),
        (1234.5, 30.0, "1,234"),
        (0.25, 0.0, "0.25"),
        (123.456, 0.0, "123.456"),
        (math.inf, 1.0, "∞"),
        (-math.inf, 1.0, "−∞"),
        (math.nan, 1.0, "–"),
        (0.1, math.nan, "0.1"),
    ],
)
def test_digits_follow_the_error(value, std_error, text):
    assert format.with_error(value, std_error) == text


def test_sizes_counts_and_amounts():
    assert format.size(2**20) == "1.00 MiB"
    assert format.size(4_920_000_000) == "4.58 GiB"
    assert [format.count(n) for n in (0, 7, 12_345)] == ["", "7", "12,345"]
    assert format.quantity(512, "tokens") == "512 tokens"
    assert format.quantity(123_456, "tokens") == "123k tokens"
    assert format.quantity(268_098_176, "weights") == "268M weights"
    assert format.quantity(3 * 2**20, "B") == "3.00 MiB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (9.4, "9 s"),
        (59.6, "1 min 00 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 05 min"),
        (math.nan, "–"),
    ],
)
def test_durations(seconds, text):
    assert format.duration(seconds) == text


def test_speed_and_time_left():
    assert format.rate(138.2, 125, "tokens") == "138 tokens/s, 2 min 05 s left"
    assert format.rate(0.25, 125, "steps") == "0.25 steps/s, 2 min 05 s left"
    assert format.rate(2**20, 0, "B") == "1.00 MiB/s"
    assert format.rate(5, 125, "") == "2 min 05 s left"
    assert format.rate(5, math.nan, "tokens") == ""
