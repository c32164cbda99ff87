"""Disjoint halves and exact budgets."""

from hypothesis import given
from hypothesis import strategies as st

from imatrix_lab.corpus import split
from imatrix_lab.records import Document


def documents(texts):
    return [Document(str(i), t, "s", "CC0-1.0") for i, t in enumerate(texts)]


def words(text):
    """A tokenizer: a token a word, and one to begin with."""
    return 1 + len(text.split())


@given(st.lists(st.text("ab ", min_size=1), max_size=60))
def test_no_text_is_on_both_sides(texts):
    calibration, heldout = split.split(documents(texts))
    assert not {d.text for d in calibration} & {d.text for d in heldout}
    assert len(calibration) + len(heldout) <= len(texts)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(2, 300))
def test_the_budget_is_met_exactly_or_all_is_used(lengths, budget):
    found = documents([" ".join(["ord"] * n) for n in lengths])
    text, used = split.within_budget(found, budget, words)
    everything = split.joined(found)
    assert everything.startswith(text)
    if words(everything) >= budget:
        assert words(text) == budget
    else:
        assert text == everything and used == found
    assert split.joined(used).startswith(text)
