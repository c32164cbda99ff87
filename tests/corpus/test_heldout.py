"""Held-out text shares neither a document nor a run of words with calibration text."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imatrix_lab.corpus import heldout
from imatrix_lab.corpus.clean.overlap import Shingles
from imatrix_lab.types import Document


def documents(texts):
    return [Document(f"s/{i}", t, "s", "CC0-1.0") for i, t in enumerate(texts)]


def prose(rng, n_words):
    return " ".join(f"ord{rng.randrange(10**9)}" for _ in range(n_words))


@given(st.lists(st.integers(1, 900), max_size=120), st.integers(1, 5000))
def test_a_cut_keeps_every_document_on_one_side(sizes, n_tokens):
    found = documents(["x"] * len(sizes))
    rest, cut = heldout.cut(found, sizes, n_tokens)
    assert sorted(rest + cut, key=found.index) == found
    if len(found) >= 2:
        assert rest and cut
        held_tokens = sum(sizes[int(d.id.split("/")[1])] for d in cut)
        assert held_tokens <= n_tokens + heldout.CUTS * max(sizes)


@given(st.integers(40, 400))
def test_a_cut_is_of_few_runs_and_of_the_size_asked_for(n):
    sizes = [100] * n
    found = documents(["x"] * n)
    rest, cut = heldout.cut(found, sizes, 100 * n * heldout.HELDOUT_SHARE)
    places = [found.index(d) for d in cut]
    runs = 1 + sum(b != a + 1 for a, b in itertools.pairwise(places))
    assert runs == heldout.CUTS
    assert abs(len(cut) - n * heldout.HELDOUT_SHARE) <= heldout.CUTS
    assert rest[0] == found[0]


def test_paragraphs_that_overlap_go():
    rng = random.Random(1)
    held = prose(rng, 60)
    shared = " ".join(held.split()[10:22])
    clean, dirty = prose(rng, 40), prose(rng, 15) + " " + shared
    seen = Shingles.of([held])
    found = documents([clean, f"{clean}\n\n{dirty}", dirty])
    made = list(heldout.without_overlap(found, seen))
    assert made[0] == (found[0], 0)
    assert made[1][0].text == clean and made[1][0].id == found[1].id and made[1][1] == 1
    assert made[2] == (None, 1)


def test_a_run_across_paragraphs_counts():
    words = ["en", "to", "tre", "fire", "fem", "seks", "sju", "åtte", "ni", "ti"]
    seen = Shingles.of([" ".join(words)])
    across = documents([" ".join(words[:5]) + "\n\n" + " ".join(words[5:])])
    assert [d for d, _ in heldout.without_overlap(across, seen)] == [None]


@pytest.mark.parametrize("n_words", [7, 8])
def test_eight_words_in_a_row_are_an_overlap(n_words):
    rng = random.Random(2)
    held = prose(rng, 30)
    text = prose(rng, 5) + " " + " ".join(held.split()[:n_words]) + " " + prose(rng, 5)
    ((document, _),) = heldout.without_overlap(documents([text]), Shingles.of([held]))
    assert (document is None) == (n_words == 8)
