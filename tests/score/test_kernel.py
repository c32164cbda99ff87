"""The compiled kernel against closed forms and an independent float64 reference."""

import math
from dataclasses import fields

import numpy as np
import pytest
from scipy import special

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.score import kernel as kernels

SIZES = [2, 31, 1000, 1024, 1025, 32_000, 262_144]


def drawn(n_vocab, rows=5, seed=0, spread=4.0):
    rng = np.random.default_rng([seed, n_vocab])
    z = rng.normal(0, spread, (rows, n_vocab)).astype(np.float32)
    return z, (z + rng.normal(0, 0.5, z.shape)).astype(np.float32)


def exact(ref, z):
    """KL(ref || z) of each row in float64, by scipy."""
    p, q = (special.log_softmax(x.astype(np.float64), axis=1) for x in (ref, z))
    return np.sum(np.exp(p) * (p - q), axis=1)


def compare(kernel, ref, z):
    return kernel.compare(ref, kernel.rows(ref), z)


@pytest.mark.parametrize("n_vocab", SIZES)
def test_against_scipy(kernel, n_vocab):
    ref, z = drawn(n_vocab)
    rows, results = kernel.rows(ref), compare(kernel, ref, z)
    np.testing.assert_array_equal(rows.maximum, ref.max(1))
    np.testing.assert_array_equal(rows.top, ref.argmax(1))
    np.testing.assert_array_equal(results.top, z.argmax(1))
    for x, got in ((ref, rows), (z, results)):
        lse = special.logsumexp(x.astype(np.float64), axis=1)
        np.testing.assert_allclose(got.log_sum, lse, rtol=0, atol=3e-7)
    np.testing.assert_allclose(results.kld, exact(ref, z), rtol=2e-6, atol=1e-6)


def test_two_tokens_in_closed_form(kernel):
    p, q = np.array([0.5, 0.9, 0.999, 0.3]), np.array([0.9, 0.5, 0.001, 0.3])
    ref, z = (np.log(np.stack([x, 1 - x], 1)).astype(np.float32) for x in (p, q))
    wanted = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(compare(kernel, ref, z).kld, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("n_vocab", [31, 1025, 32_000])
def test_uniform_against_nearly_one_hot(kernel, n_vocab):
    """With c on one of n logits: KL(u || h) = lse - c/n - ln n, KL(h || u) = ln n - lse + p c."""
    c = 20.0
    uniform, hot = np.zeros((2, 1, n_vocab), np.float32)
    hot[0, n_vocab // 2] = c
    lse = math.log(n_vocab - 1 + math.exp(c))
    to_hot, to_uniform = (compare(kernel, a, b).kld[0] for a, b in ((uniform, hot), (hot, uniform)))
    assert to_hot == pytest.approx(lse - c / n_vocab - math.log(n_vocab), rel=1e-6)
    share = math.exp(c - lse)
    assert to_uniform == pytest.approx(math.log(n_vocab) - lse + share * c, rel=1e-6)


@pytest.mark.parametrize("n_vocab", SIZES)
def test_equal_rows_are_exactly_zero(kernel, n_vocab):
    ref, _ = drawn(n_vocab, spread=20)
    assert compare(kernel, ref, ref.copy()).kld.tolist() == [0.0] * len(ref)


@pytest.mark.parametrize("offset", [1000.0, -1000.0])
def test_an_offset_of_all_logits_changes_nothing(kernel, offset):
    """Up to what adding it rounds away, which the reference is computed with too."""
    ref, z = (x + np.float32(offset) for x in drawn(32_000))
    np.testing.assert_allclose(compare(kernel, ref, z).kld, exact(ref, z), rtol=2e-6, atol=1e-6)
    rows = kernel.rows(ref)
    lse = special.logsumexp(ref.astype(np.float64), axis=1)
    np.testing.assert_allclose(rows.log_sum, lse, rtol=0, atol=3e-7)


def test_an_offset_of_one_side_costs_float32_of_it(kernel):
    ref, z = drawn(32_000)
    moved = z + np.float32(1000)
    kld, atol = compare(kernel, ref, moved).kld, 1000 * np.finfo(np.float32).eps
    np.testing.assert_allclose(kld, exact(ref, moved), rtol=0, atol=atol)


def test_rows_that_rise_block_by_block(kernel):
    """The running maximum moves in every block, from far below."""
    ref = np.linspace(-300, 300, 10_000, dtype=np.float32)[None]
    z = np.ascontiguousarray(ref[:, ::-1])
    np.testing.assert_allclose(compare(kernel, ref, z).kld, exact(ref, z), rtol=2e-6)
    np.testing.assert_allclose(compare(kernel, z, ref).kld, exact(z, ref), rtol=2e-6)


# -- what is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 37, 1023, 1024, 1500, 2000])
def test_not_finite_anywhere_is_nan(kernel, value, place):
    """Vocabulary 2001: whole blocks, whole lanes and a rest; the row beside it is not touched."""
    ref, z = drawn(2001, rows=2)
    clean = compare(kernel, ref, z)
    ref[0, place] = value
    assert np.isnan(kernel.rows(ref).log_sum).tolist() == [True, False]
    spoilt = compare(kernel, ref, z)
    assert np.isnan(spoilt.kld).tolist() == [True, False]
    assert spoilt.kld[1] == clean.kld[1]
    ref, z = drawn(2001, rows=2)
    z[0, place] = value
    spoilt = compare(kernel, ref, z)
    assert np.isnan(spoilt.kld).tolist() == [True, False]
    assert np.isnan(spoilt.log_sum).tolist() == [True, False]


@pytest.mark.parametrize("place", [0, 1024, 2000])
def test_minus_infinity_is_never_a_finite_divergence(kernel, place):
    ref, z = drawn(2001, rows=1)
    low = z.copy()
    low[0, place] = -math.inf
    assert not np.isfinite(compare(kernel, ref, low).kld[0])
    assert not np.isfinite(compare(kernel, low, z).kld[0])
    assert not np.isfinite(compare(kernel, low, low).kld[0])


@pytest.mark.parametrize("end", [1024, 2048, 2001, 2100])
def test_whole_blocks_of_nan_are_not_forgotten(kernel, end):
    ref, z = drawn(2100, rows=1)
    ref[:, :end] = math.nan
    assert np.isnan(kernel.rows(ref).log_sum[0])
    assert np.isnan(compare(kernel, z, ref).log_sum[0])
    assert np.isnan(compare(kernel, z, ref).kld[0])
    assert np.isnan(compare(kernel, ref, z).kld[0])


def test_a_row_of_nan_has_no_top(kernel):
    rows = kernel.rows(np.full((1, 1500), math.nan, np.float32))
    assert rows.top.tolist() == [-1]
    assert np.isnan(rows.log_sum[0])


# -- ties and threads


@pytest.mark.parametrize("places", [(0, 1), (5, 37), (1023, 1024), (40, 2000), (1024, 1025, 1999)])
def test_a_tie_is_the_lowest_token(kernel, places):
    ref, z = drawn(2001, rows=1)
    ref[0, list(places)] = z[0, list(places)] = 50
    assert kernel.rows(ref).top.tolist() == [places[0]]
    assert compare(kernel, ref, z).top.tolist() == [places[0]]


def test_bits_do_not_depend_on_threads(kernel_store, tools):
    ref, z = drawn(32_000, rows=13)
    results = []
    for threads in (1, 2, 5):
        kernel = kernels.get(tools, threads, Session(kernel_store, Silent()))
        rows = kernel.rows(ref)
        results.append([rows, kernel.compare(ref, rows, z), kernel.top(ref, 100)])
    for others in results[1:]:
        for one, other in zip(results[0][:2], others[:2], strict=True):
            for field in fields(one):
                a, b = getattr(one, field.name), getattr(other, field.name)
                assert (a is None and b is None) or a.tobytes() == b.tobytes(), field.name
        assert others[2].tobytes() == results[0][2].tobytes()


def test_bits_do_not_depend_on_the_rows_beside(kernel):
    ref, z = drawn(1025, rows=7)
    whole = compare(kernel, ref, z)
    for i in range(7):
        alone = compare(kernel, ref[i : i + 1], z[i : i + 1])
        assert alone.kld.tobytes() == whole.kld[i : i + 1].tobytes()
        assert alone.log_sum.tobytes() == whole.log_sum[i : i + 1].tobytes()


def test_no_rows(kernel):
    none = np.empty((0, 100), np.float32)
    assert len(compare(kernel, none, none).kld) == 0
    assert kernel.top(none, 3).shape == (0, 3)


# -- top K


def largest(z, k):
    """The k largest of each row by numpy; the lower token on a tie; in increasing order."""
    return np.sort(np.argsort(-z.astype(np.float64), axis=1, kind="stable")[:, :k], axis=1)


@pytest.mark.parametrize("n_vocab", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_top_k_against_argsort(kernel, n_vocab, share):
    z, _ = drawn(n_vocab, rows=2)
    k = max(1, round(share * n_vocab))
    np.testing.assert_array_equal(kernel.top(z, k), largest(z, k))


@pytest.mark.parametrize("k", [1, 2, 10, 100, 999, 1000])
def test_top_k_with_ties(kernel, k):
    """Few distinct values; far apart, as beyond the histogram's reach of 32 nats; all the same."""
    rng = np.random.default_rng(k)
    for z in (
        rng.integers(0, 4, (3, 1000)),
        rng.integers(0, 4, (3, 1000)) * 100.0,
        np.zeros((1, 1000)),
        rng.integers(0, 2, (3, 1000)) * 1e-6,
    ):
        row = z.astype(np.float32)
        np.testing.assert_array_equal(kernel.top(row, k), largest(row, k))


def test_top_k_with_nan_takes_them_last(kernel):
    z, _ = drawn(1000, rows=1)
    z[0, :990] = math.nan
    assert set(range(990, 1000)) <= set(kernel.top(z, 12)[0].tolist())
    all_nan = np.full((1, 100), math.nan, np.float32)
    assert kernel.top(all_nan, 3).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("k", [0, -1, 101])
def test_k_out_of_range(kernel, k):
    with pytest.raises(ValueError, match="of 100 tokens"):
        kernel.top(np.zeros((1, 100), np.float32), k)
