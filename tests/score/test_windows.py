"""Windows, batches and steps: every token once, in its document, with its context."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imatrix_lab.score.windows import (
    STEP_MIN,
    Protocol,
    Window,
    batches,
    document_windows,
    steps,
    stream_windows,
)

BOS = 1
FAST = settings(max_examples=80, deadline=None)


@st.composite
def cases(draw):
    """Documents of distinct tokens, a BOS or none, and a protocol."""
    n_ctx = draw(st.integers(4, 120))
    overlap = draw(st.integers(1, n_ctx - 2))
    sizes = draw(st.lists(st.integers(0, 300), max_size=6))
    ends = np.cumsum([100, *sizes])
    documents = [list(range(a, b)) for a, b in itertools.pairwise(ends)]
    return documents, draw(st.sampled_from([None, BOS])), Protocol("document", n_ctx, overlap)


def scored(windows: list[Window]) -> list[int]:
    return [int(t) for w in windows for t in w.tokens[w.first :]]


@FAST
@given(cases())
def test_every_token_is_scored_once_and_in_order(case):
    """All but the first of a document where there is no BOS to predict it from."""
    documents, bos, protocol = case
    wanted = [t for d in documents for t in (d if bos is not None else d[1:])]
    assert scored(document_windows(documents, bos, protocol)) == wanted


@FAST
@given(cases())
def test_windows_stay_in_their_document(case):
    documents, bos, protocol = case
    lead = [] if bos is None else [bos]
    for w in document_windows(documents, bos, protocol):
        tokens = w.tokens.tolist()
        assert tokens[: len(lead)] == lead
        assert set(tokens[len(lead) :]) <= set(documents[w.document])
        assert len(tokens) <= protocol.n_ctx


@FAST
@given(cases())
def test_positions_are_those_in_the_document(case):
    """``tokens[i]`` is the document's token at ``offset + i``, its BOS being number 0."""
    documents, bos, protocol = case
    for w in document_windows(documents, bos, protocol):
        whole = ([] if bos is None else [bos]) + documents[w.document]
        for i in range(w.first, len(w.tokens)):
            assert whole[w.offset + i] == w.tokens[i]


@FAST
@given(cases())
def test_later_windows_have_the_overlap_as_context(case):
    documents, bos, protocol = case
    lead = 0 if bos is None else 1
    last: dict[int, Window] = {}
    for w in document_windows(documents, bos, protocol):
        before = last.get(w.document)
        if before is None:
            assert (w.number, w.first) == (0, 1)
        else:
            assert w.number == before.number + 1
            assert len(before.tokens) == protocol.n_ctx  # full, or it would have been the last
            assert w.first == lead + protocol.overlap
            context = w.tokens[lead : w.first].tolist()
            assert context == before.tokens[len(before.tokens) - protocol.overlap :].tolist()
        last[w.document] = w


@pytest.mark.parametrize(
    ("document", "bos", "n"), [([], 1, 0), ([], None, 0), ([7], None, 0), ([7], 1, 1)]
)
def test_documents_of_less_than_two_tokens(document, bos, n):
    windows = document_windows([document], bos, Protocol("document", 32, 8))
    assert len(windows) == n
    assert scored(windows) == [7][:n]


@FAST
@given(cases(), st.integers(1, 8))
def test_batches_keep_order_and_limits(case, sequences_max):
    documents, bos, protocol = case
    windows = document_windows(documents, bos, protocol)
    made = batches(windows, protocol.n_ctx, sequences_max)
    assert [id(w) for b in made for w in b] == [id(w) for w in windows]
    sizes = [sum(len(w.tokens) for w in b) for b in made]
    assert all(0 < size <= protocol.n_ctx for size in sizes)
    assert all(1 <= len(b) <= sequences_max for b in made)
    for i in range(len(made) - 1):  # the next window would not have gone in
        fits = sizes[i] + len(made[i + 1][0].tokens) <= protocol.n_ctx
        assert not fits or len(made[i]) == sequences_max


@FAST
@given(cases(), st.integers(1, 50), st.integers(1, 50))
def test_steps_reproduce_the_windows(case, n_batch, n_rows):
    documents, bos, protocol = case
    for batch in batches(document_windows(documents, bos, protocol), protocol.n_ctx, 8):
        made = list(steps(batch, n_batch, n_rows))
        assert all(0 < len(s.tokens) <= n_batch for s in made)
        assert all(s.outputs.sum() == len(s.targets) <= n_rows for s in made)
        tokens, positions, sequences, outputs, targets = (
            np.concatenate([getattr(s, name) for s in made])
            for name in ("tokens", "positions", "sequences", "outputs", "targets")
        )
        expected = []
        for i, window in enumerate(batch):
            own = sequences == i
            np.testing.assert_array_equal(tokens[own], window.tokens[:-1])
            np.testing.assert_array_equal(positions[own], np.arange(len(window.tokens) - 1))
            np.testing.assert_array_equal(
                window.tokens[1:][outputs[own]], window.tokens[window.first :]
            )
            expected += window.tokens[window.first :].tolist()
        assert targets.tolist() == expected
        assert (np.diff(sequences) >= 0).all()


@FAST
@given(cases())
def test_steps_are_as_long_as_the_limits_allow(case):
    documents, bos, protocol = case
    n_batch, n_rows = 7, 5
    for batch in batches(document_windows(documents, bos, protocol), protocol.n_ctx, 8):
        made = list(steps(batch, n_batch, n_rows))
        for one, following in itertools.pairwise(made):
            full = len(one.tokens) == n_batch
            assert full or (len(one.targets) == n_rows and following.outputs[0])


@FAST
@given(cases(), st.integers(2 * STEP_MIN, 50), st.integers(2 * STEP_MIN, 50))
def test_no_step_is_short_where_there_is_more(case, n_batch, n_rows):
    """llama.cpp multiplies few tokens in another way, with other rounding."""
    documents, bos, protocol = case
    for batch in batches(document_windows(documents, bos, protocol), protocol.n_ctx, 8):
        sizes = [len(s.tokens) for s in steps(batch, n_batch, n_rows)]
        assert min(sizes) >= min(STEP_MIN, sum(sizes))


def as_llama_perplexity(tokens, bos, n_ctx):
    """What perplexity() of llama.cpp's tools/perplexity scores: (window, position, token).

    Its logits at positions first … n_ctx - 2 are scored against the tokens one further, with
    first = n_ctx/2; BOS is written over the first token for the decode alone.
    """
    expected, decoded = [], []
    for i in range(len(tokens) // n_ctx):
        piece = list(tokens[i * n_ctx : (i + 1) * n_ctx])
        first = n_ctx // 2
        for j in range(first, n_ctx - 1):
            expected.append((i, i * n_ctx + j + 1, piece[j + 1]))
        if bos is not None:
            piece[0] = bos
        decoded.append(piece)
    return expected, decoded


@FAST
@given(st.integers(0, 400), st.integers(4, 65), st.sampled_from([None, BOS]))
def test_stream_windows_are_llama_perplexitys(n, n_ctx, bos):
    tokens = list(range(100, 100 + n))
    windows = stream_windows(tokens, bos, Protocol("llamacpp", n_ctx, 0))
    wanted, decoded = as_llama_perplexity(tokens, bos, n_ctx)
    assert [w.tokens.tolist() for w in windows] == decoded
    assert wanted == [
        (w.document, w.offset + i, int(w.tokens[i]))
        for w in windows
        for i in range(w.first, len(w.tokens))
    ]


@FAST
@given(st.integers(8, 400), st.integers(4, 65), st.integers(1, 70), st.integers(1, 70))
def test_rows_asked_for_are_llama_perplexitys(n, n_ctx, n_batch, n_rows):
    """The positions whose logits are used: n_ctx/2 to n_ctx - 2."""
    for window in stream_windows(range(100, 100 + n), BOS, Protocol("llamacpp", n_ctx, 0)):
        asked = np.concatenate([s.positions[s.outputs] for s in steps([window], n_batch, n_rows)])
        assert asked.tolist() == list(range(n_ctx // 2, n_ctx - 1))
