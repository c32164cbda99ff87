"""Sign flips of clusters: against scipy, full enumeration, and by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from imatrix_lab.stats import sign_flips


def unequal(rng, n, shift=0.0):
    """Totals and sizes of documents of lognormal length with heavy-tailed differences."""
    sizes = np.round(np.exp(6 + 0.9 * rng.standard_normal(n)))
    return sizes * (0.05 * rng.standard_t(4, n) + shift), sizes


def enumerated(totals):
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(totals))))
    sums = np.abs(signs @ totals)
    larger = np.mean(sums > abs(totals.sum()) + 1e-9)
    return larger, np.mean(sums >= abs(totals.sum()) - 1e-9)


def test_few_clusters_are_scipys_permutation():
    totals, _ = unequal(np.random.default_rng(1), 9, 0.02)
    theirs = stats.permutation_test(
        (totals, np.zeros(9)), lambda a, b: np.sum(a - b), permutation_type="samples",
        n_resamples=np.inf, vectorized=False,
    )  # fmt: skip
    assert sign_flips.p_value(totals) == (pytest.approx(theirs.pvalue), True)
    lower = stats.permutation_test(
        (totals,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="less"
    )
    assert sign_flips.p_value(totals, one_sided=True)[0] == pytest.approx(lower.pvalue)


@pytest.mark.parametrize("giant", [0.0, 0.6, 5.0])
def test_many_clusters_are_close_to_all_patterns(giant):
    rng = np.random.default_rng(2)
    for shift in (0.0, 0.01, 0.03, 0.05):
        totals, _ = unequal(rng, 15, shift)
        totals[0] += giant * np.abs(totals[1:]).sum()
        p, exact = sign_flips.p_value(totals)
        _, expected = enumerated(totals)
        assert not exact
        assert p == pytest.approx(expected, rel=0.15, abs=0.004)


def test_whole_numbers_give_the_mid_p():
    totals = np.random.default_rng(3).integers(-2, 4, 16).astype(float)
    beyond, reached = enumerated(totals)
    assert beyond < sign_flips.p_value(totals)[0] < reached


def test_p_has_no_floor_but_that_of_one_pattern():
    assert sign_flips.p_value(np.ones(40))[0] == pytest.approx(2.0**-39)
    assert sign_flips.p_value(np.ones(7))[0] == 2.0**-6
    assert sign_flips.p_value(np.zeros(40))[0] == 1


@pytest.mark.parametrize("n", [8, 15, 30])
def test_interval_holds_what_is_not_rejected(n):
    totals, sizes = unequal(np.random.default_rng(n), n, 0.01)
    for side, end in zip((1, -1), sign_flips.interval(totals, sizes, 0.95), strict=True):
        step = side * 1e-6

        def p(mean):
            return sign_flips.p_value(totals - mean * sizes)[0]

        assert p(end + step) > 0.05 - 1e-4
        assert p(end - step) <= 0.05 + 1e-4


def test_the_interval_of_many_clusters_goes_on_from_that_of_few():
    totals, sizes = unequal(np.random.default_rng(6), 14, 0.02)
    many = sign_flips.interval(totals, sizes, 0.95)
    few = sign_flips._exact_interval(totals, sizes, 0.95)
    np.testing.assert_allclose(many, few, atol=0.05 * (few[1] - few[0]))


def test_five_clusters_cannot_give_95_percent():
    assert sign_flips.interval(np.arange(5.0), np.ones(5), 0.95) == (-np.inf, np.inf)
    assert np.isfinite(sign_flips.interval(np.arange(6.0), np.ones(6), 0.95)).all()


def test_level_and_coverage_hold_with_documents_of_lognormal_length():
    rng = np.random.default_rng(7)
    hits = np.zeros(2)
    for _ in range(1500):
        totals, sizes = unequal(rng, 15)
        low, high = sign_flips.interval(totals, sizes, 0.95)
        hits += (sign_flips.p_value(totals)[0] <= 0.05, low <= 0 <= high)
    rejected, covered = hits / 1500
    assert 0.035 <= rejected <= 0.065
    assert covered == pytest.approx(1 - rejected, abs=0.002)
