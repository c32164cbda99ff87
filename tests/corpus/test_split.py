"""Disjoint halves and exact budgets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imatrix_lab.corpus import split
from imatrix_lab.records import Document


def documents(texts):
    return [Document(str(i), t, "s", "CC0-1.0") for i, t in enumerate(texts)]


def words(text):
    """A tokenizer: a token a word, and one to begin with."""
    return 1 + len(text.split())


def words_and_joints(text):
    """A tokenizer without a beginning, to which a blank line is a token too."""
    return len(text.split()) + text.count(split.JOINT)


@given(st.lists(st.text("ab ", min_size=1), max_size=60))
def test_no_text_is_on_both_sides(texts):
    calibration, heldout = split.split(documents(texts))
    assert not {d.text for d in calibration} & {d.text for d in heldout}
    assert len(calibration) + len(heldout) <= len(texts)


@pytest.mark.parametrize("count", [words, words_and_joints])
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(2, 300))
def test_the_budget_is_met_exactly_or_all_is_used(count, lengths, budget):
    found = documents([" ".join(["ord"] * n) for n in lengths])
    text, used = split.within_budget(found, budget, count)
    everything = split.joined(found)
    assert everything.startswith(text)
    if count(everything) >= budget:
        assert count(text) == budget
    else:
        assert text == everything and used == found
    assert split.joined(used).startswith(text)
