"""Bootstrap sums, sign flips, and the intervals made of them, against scipy and by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats

from imatrix_lab.stats import resample


def test_bootstrap_sums_have_the_law_of_drawing_with_replacement():
    columns = np.random.default_rng(1).normal(2, 1, (30, 2))
    sums = resample.bootstrap_sums(columns, 20_000, np.random.default_rng(2))
    np.testing.assert_allclose(sums.mean(axis=0), columns.sum(axis=0), rtol=0.01)
    covariance = 30 * np.cov(columns.T, ddof=0)
    np.testing.assert_allclose(np.cov(sums.T), covariance, atol=0.03 * np.trace(covariance))


def test_chunks_change_nothing(monkeypatch):
    columns = np.random.default_rng(3).normal(size=(7, 3))
    whole = resample.bootstrap_sums(columns, 50, np.random.default_rng(4))
    monkeypatch.setattr(resample, "_CELLS_AT_ONCE", 21)
    np.testing.assert_allclose(
        resample.bootstrap_sums(columns, 50, np.random.default_rng(4)), whole
    )


def test_few_clusters_are_flipped_in_every_way_once():
    totals = np.array([1.0, 2.0, 4.0])
    sums, exact = resample.flipped_sums(totals[:, None], 100, np.random.default_rng(5))
    expected = sorted(sum(s) for s in itertools.product((1, -1), (2, -2), (4, -4)))
    assert exact
    assert sorted(sums[:, 0].tolist()) == expected
    assert not resample.flipped_sums(totals[:, None], 7, np.random.default_rng(5))[1]


@pytest.mark.parametrize("n_clusters", [10, 25, 1000])
def test_expanded_percentiles_of_normal_replicates_are_the_t_interval(n_clusters):
    error = 0.7
    levels = (np.arange(100_000) + 0.5) / 100_000
    narrow = error * ((n_clusters - 1) / n_clusters) ** 0.5
    replicates = stats.norm.ppf(levels) * narrow
    tail = resample.tail_share(replicates, error, n_clusters - 1, 0.95)
    expected = stats.t.ppf(0.975, n_clusters - 1) * error
    assert np.quantile(replicates, 1 - tail) == pytest.approx(expected, rel=0.003)
    assert resample.tail_share(np.ones(9), 0.0, 5, 0.9) == pytest.approx(0.05)
