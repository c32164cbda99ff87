"""Quantiles by bootstrap of clusters, against plain resampling and by simulation."""

import numpy as np
import pytest

from imatrix_lab.stats import quantiles, resample
from tests.stats.test_clustered import documents


@pytest.mark.parametrize("q", [0.5, 0.99])
def test_quantile_covers_its_truth(q):
    rng = np.random.default_rng(4)
    truth = np.quantile(np.concatenate([documents(rng, 500)[0] for _ in range(20)]), q)
    interval = [quantiles.quantile(*documents(rng, 25), q, rng, 300) for _ in range(400)]
    assert 0.915 <= np.mean([f.low <= truth <= f.high for f in interval]) <= 0.98


def test_quantile_replicates_are_those_of_plain_resampling():
    """Thresholds thin out the order statistics; what is lost is small beside the error."""
    rng = np.random.default_rng(5)
    values, clusters = documents(rng, 30)
    interval = quantiles.quantile(values, clusters, 0.9, rng, 4000)
    by_cluster = [values[clusters == g] for g in range(30)]
    half = np.sqrt(3 * 0.9 * 0.1 / len(values))
    window = np.linspace(0.9 - half, 0.9 + half, 401)

    def smooth(sample):
        return np.quantile(sample, window, method="inverted_cdf").mean()

    plain = np.array(
        [
            smooth(np.concatenate([by_cluster[g] for g in rng.integers(0, 30, 30)]))
            for _ in range(3000)
        ]
    )
    without = [smooth(np.concatenate(by_cluster[:g] + by_cluster[g + 1 :])) for g in range(30)]
    error = resample.jackknife_error(np.array(without), smooth(values))
    assert interval.estimate == pytest.approx(smooth(values), rel=1e-3)
    assert interval.estimate == pytest.approx(np.quantile(values, 0.9), rel=0.01)
    assert interval.std_error == pytest.approx(max(error, plain.std() * np.sqrt(30 / 29)), rel=0.03)
    tail = resample.tail_share(plain, interval.std_error, 29, 0.95)
    np.testing.assert_allclose(
        [interval.low, interval.high], np.quantile(plain, [tail, 1 - tail]), 0.03
    )


@pytest.mark.parametrize("q", [0.01, 0.5, 0.999])
def test_quantile_estimates_are_near_the_order_statistics(q):
    rng = np.random.default_rng(9)
    values, clusters = rng.normal(0, 1, 20_000), rng.integers(0, 50, 20_000)
    interval = quantiles.quantile(values, clusters, q, rng, 200)
    near = np.quantile(values, np.clip([q - 0.002, q + 0.002], 0, 1))
    assert near[0] <= interval.estimate <= near[1]
    assert interval.low <= interval.estimate <= interval.high


def test_clusters_may_have_any_numbers_and_ties():
    rng = np.random.default_rng(6)
    interval = quantiles.quantile(np.ones(90), np.repeat([7, -3, 1000], 30), 0.999, rng)
    assert (interval.estimate, interval.low, interval.high, interval.std_error) == (1, 1, 1, 0)


@pytest.mark.parametrize("n_clusters", [1, 2])
def test_one_cluster_has_no_interval_two_have(n_clusters):
    clusters = np.arange(20) % n_clusters
    interval = quantiles.quantile(np.arange(20.0), clusters, 0.5, np.random.default_rng(7))
    assert np.isfinite(interval.estimate)
    assert np.isnan([interval.std_error, interval.low, interval.high]).all() == (n_clusters == 1)


def test_what_has_no_quantile_is_refused():
    rng = np.random.default_rng(8)
    with pytest.raises(ValueError, match="finite"):
        quantiles.quantile(np.array([np.inf, 1]), np.array([0, 1]), 0.5, rng)
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantiles.quantile(np.ones(3), np.zeros(3, int), 1.0, rng)
    with pytest.raises(ValueError, match="go together"):
        quantiles.quantile(np.ones(3), np.array([0, 1]), 0.5, rng)
