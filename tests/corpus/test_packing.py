"""Blocks, shares, balanced prefixes, exact budgets, disjoint samples."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imatrix_lab.corpus import packing
from imatrix_lab.corpus.documents import JOINT
from imatrix_lab.corpus.packing import BLOCK_TOKENS, Block, Lane
from imatrix_lab.types import Document

SIZES = st.lists(st.integers(1, 900), min_size=1, max_size=80)


def documents(texts, name="s"):
    return [Document(f"{name}/{i}", t, name, "CC0-1.0") for i, t in enumerate(texts)]


def lane(name, sizes):
    found = documents(["x"] * len(sizes), name)
    return Lane(name, tuple(packing.blocks(found, sizes)))


def words(text):
    """A tokenizer: a token a word, and one to begin with."""
    return 1 + len(text.split())


def words_and_joints(text):
    """A tokenizer without a beginning, to which a blank line is a token too."""
    return len(text.split()) + text.count(JOINT)


@given(SIZES)
def test_blocks_hold_every_document_once_in_order(sizes):
    found = documents(["x"] * len(sizes))
    made = packing.blocks(found, sizes)
    assert [d for b in made for d in b.documents] == found
    assert sum(b.n_tokens for b in made) == sum(sizes)
    assert all(b.n_tokens >= BLOCK_TOKENS for b in made) or len(made) == 1


@given(SIZES, st.integers(0, 9))
def test_a_seed_gives_one_order_and_loses_nothing(sizes, seed):
    before = lane("s", sizes)
    after = packing.shuffled(before, seed)
    assert after == packing.shuffled(before, seed)
    assert sorted(after.blocks, key=repr) == sorted(before.blocks, key=repr)


@given(SIZES, st.integers(1, 6))
def test_samples_share_no_document_and_lose_none(sizes, n_samples):
    whole = [lane("a", sizes), lane("b", sizes[::-1])]
    hands = [packing.deal(whole, k, n_samples) for k in range(1, n_samples + 1)]
    ids = [d.id for hand in hands for part in hand for b in part.blocks for d in b.documents]
    assert len(ids) == len(set(ids)) == 2 * len(sizes)


def test_a_bootstrap_meets_its_quota_and_differs_by_sample():
    whole = [lane("a", [600] * 60)]
    first, again, second = (packing.redraw(whole, [30_000], k, 0) for k in (1, 1, 2))
    assert first == again != second
    assert 30_000 <= first[0].n_tokens < 30_000 + 1200
    assert len(set(first[0].blocks)) < len(first[0].blocks)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=6), st.integers(0, 20_000))
def test_shares(available, n_tokens):
    given_ = packing.shares(available, n_tokens)
    assert all(0 <= g <= a for g, a in zip(given_, available, strict=True))
    assert sum(given_) == min(n_tokens, sum(available))
    full = [g for g, a in zip(given_, available, strict=True) if g < a]
    assert not full or max(full) - min(full) <= len(available)  # equal but for rounding
    assert all(
        g <= min(full) + len(available)
        for g, a in zip(given_, available, strict=True)
        if g == a and full
    )


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(50, 900), min_size=20, max_size=80), min_size=2, max_size=4))
def test_every_prefix_is_balanced(sizes):
    lanes = [lane(str(i), s) for i, s in enumerate(sizes)]
    quotas = [part.n_tokens * 3 // 4 for part in lanes]
    size_of = {
        d.id: s
        for part, found in zip(lanes, sizes, strict=True)
        for d, s in zip((d for b in part.blocks for d in b.documents), found, strict=True)
    }
    order = list(packing.interleave(lanes, quotas, len))
    taken = dict.fromkeys((part.name for part in lanes), 0)
    largest = max(b.n_tokens for part in lanes for b in part.blocks)
    for name, document in order:
        taken[name] += size_of[document.id]
        progress = [taken[p.name] / q for p, q in zip(lanes, quotas, strict=True)]
        assert max(progress) - min(progress) <= 2 * largest / min(quotas)
    for part, quota in zip(lanes, quotas, strict=True):
        assert abs(taken[part.name] - quota) <= largest


def test_interleaving_keeps_blocks_together():
    lanes = [lane("a", [512] * 40), lane("b", [512] * 40)]
    order = [name for name, _ in packing.interleave(lanes, [10_240, 10_240], len)]
    runs = [len(list(run)) for _, run in itertools.groupby(order)]
    assert min(runs[:-1]) == 2 and len(order) == 40


def test_a_lane_without_blocks_gives_nothing():
    lanes = [Lane("a", ()), Lane("b", (Block(tuple(documents(["x"])), (7,)),))]
    assert [name for name, _ in packing.interleave(lanes, [0, 7], len)] == ["b"]


@pytest.mark.parametrize("count", [words, words_and_joints])
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(2, 300))
def test_the_budget_is_met_exactly_or_all_is_used(count, lengths, budget):
    found = documents([" ".join(["ord"] * n) for n in lengths])
    text, used = packing.within_budget(found, budget, count)
    everything = packing.joined(found)
    assert everything.startswith(text)
    if count(everything) >= budget:
        assert count(text) == budget
    else:
        assert text == everything and used == found
    assert packing.joined(used).startswith(text)
    ends = packing.ends(text, used) if text else [0]
    starts = [0, *(end + len(JOINT) for end in ends[:-1])]
    parts = [text[a:b] for a, b in zip(starts, ends, strict=True)]
    assert parts[:-1] == [d.text for d in used[: len(parts) - 1]]
    assert used[len(parts) - 1].text.startswith(parts[-1])


@pytest.mark.parametrize("n_documents", [1, 1000])
def test_no_more_is_counted_than_the_budget_takes(n_documents):
    counted = 0

    def count(text):
        nonlocal counted
        counted += len(text)
        return len(text) // 4

    found = documents(["ord " * (1_000_000 // n_documents)] * n_documents)
    unread = iter(found)
    text, used = packing.within_budget(unread, 2048, count)
    assert count(text) == 2048
    assert counted < 400_000
    assert len(list(unread)) == n_documents - len(used)


@given(st.lists(st.integers(1, 12_000), min_size=1, max_size=4), st.integers(2, 9000))
def test_a_long_document_is_cut_where_the_whole_would_be(lengths, budget):
    found = documents([" ".join(["ord"] * n) for n in lengths])
    text, used = packing.within_budget(found, budget, words)
    assert packing.joined(found).startswith(text)
    assert words(text) == min(budget, words(packing.joined(found)))
    assert [d.id for d in used] == [d.id for d in found[: len(used)]]


def test_many_small_documents_are_not_counted_whole_again_and_again():
    """A token that begins every text makes each document count more alone than joined."""
    calls = []

    def count(text):
        calls.append(len(text))
        return 1 + len(text.split())

    text, _ = packing.within_budget(documents(["ord"] * 20_000), 10_000, count)
    assert count(text) == 10_000
    assert sum(size > 10_000 for size in calls) < 40
