"""Clustered means, against statsmodels and clubSandwich, and by simulation."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from imatrix_lab.stats import clustered


def documents(rng, n_clusters, spread=0.3):
    """Heavy-tailed values of documents that differ: (values, clusters)."""
    sizes = rng.integers(20, 200, n_clusters)
    clusters = np.repeat(np.arange(n_clusters), sizes)
    level = rng.normal(-3, spread, n_clusters)
    return np.exp(level[clusters] + rng.standard_normal(len(clusters))), clusters


def test_mean_is_that_of_statsmodels_crv3():
    values, clusters = documents(np.random.default_rng(1), 17)
    interval = clustered.mean(np.bincount(clusters, values), np.bincount(clusters))
    fit = sm.OLS(values, np.ones(len(values))).fit(
        cov_type="cluster-crv3", cov_kwds={"groups": clusters}, use_t=True
    )
    assert interval.estimate == pytest.approx(fit.params[0], rel=1e-12)
    assert interval.std_error == pytest.approx(fit.bse[0], rel=1e-10)
    np.testing.assert_allclose([interval.low, interval.high], fit.conf_int()[0], rtol=1e-9)
    assert (interval.n, interval.n_clusters, interval.df) == (len(values), 17, 16)


def test_mean_is_that_of_club_sandwich():
    values = np.array([
        0.31, -0.12, 0.44, 0.05, 0.21, -0.33, 0.52, 0.18, 0.09, -0.07, 0.61, 0.02, 0.27, -0.15,
        0.36, 0.11, 0.48, -0.22, 0.14, 0.07, 0.29, 0.33,
    ])  # fmt: skip
    clusters = np.repeat(np.arange(7), [4, 2, 5, 2, 3, 3, 3])
    interval = clustered.mean(np.bincount(clusters, values), np.bincount(clusters))
    # R 4.2.2, clubSandwich 0.5.8: m <- lm(y ~ 1); v <- vcovCR(m, cluster = g, type = "CR3") * 6/7;
    # sqrt(v); coef_test(m, vcov = v, test = "naive-t"). CR3 there lacks the factor (G-1)/G.
    assert interval.estimate == pytest.approx(0.163181818182)
    assert interval.std_error == pytest.approx(0.0373938055274)
    t = interval.estimate / interval.std_error
    assert 2 * stats.t.sf(t, interval.df) == pytest.approx(0.00475, abs=5e-6)


def test_equal_clusters_give_the_t_interval_of_their_means():
    totals = np.random.default_rng(2).normal(3, 1, 12) * 50
    interval = clustered.mean(totals, np.full(12, 50))
    assert interval.std_error == pytest.approx(np.std(totals / 50, ddof=1) / np.sqrt(12))


def test_mean_covers_its_truth():
    rng = np.random.default_rng(3)
    truth = np.exp(-3 + 0.3**2 / 2 + 0.5)
    hits = naive = 0
    for _ in range(600):
        values, clusters = documents(rng, 30)
        interval = clustered.mean(np.bincount(clusters, values), np.bincount(clusters))
        hits += interval.low <= truth <= interval.high
        naive += abs(values.mean() - truth) < 1.96 * values.std() / len(values) ** 0.5
    assert 0.92 <= hits / 600 <= 0.975
    assert naive / 600 < 0.7


@pytest.mark.parametrize("truth", [0.05, 0.9])
def test_share_covers_its_truth_where_few_are_right_or_wrong(truth):
    rng = np.random.default_rng(5)
    hits = plain = 0
    for _ in range(400):
        sizes = rng.integers(1, 6, 15)
        totals = rng.binomial(sizes, rng.beta(truth * 7 / 3, (1 - truth) * 7 / 3, 15))
        interval, t = clustered.share(totals, sizes), clustered.mean(totals, sizes)
        assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
        hits += interval.low <= truth <= interval.high
        plain += t.low <= truth <= t.high
    assert hits / 400 >= 0.94
    assert plain / 400 < 0.9


def test_share_is_the_t_interval_where_that_is_far_from_the_ends():
    rng = np.random.default_rng(6)
    totals = rng.binomial(5, 0.5, 2000)
    interval, t = (
        clustered.share(totals, np.full(2000, 5)),
        clustered.mean(totals, np.full(2000, 5)),
    )
    assert (interval.low, interval.high) == pytest.approx((t.low, t.high), abs=1e-4)


@pytest.mark.parametrize("right", [0, 5])
def test_share_of_all_alike_is_not_sure(right):
    interval = clustered.share(np.full(8, right), np.full(8, 5))
    width = interval.high - interval.low
    assert width == pytest.approx(0.411, abs=0.001)  # 8 clusters, not 40 items


@pytest.mark.parametrize("n_clusters", [1, 2])
def test_one_cluster_has_no_interval_two_have(n_clusters):
    values, clusters = np.arange(20.0), np.arange(20) % n_clusters
    mean = clustered.mean(np.bincount(clusters, values), np.bincount(clusters))
    assert np.isfinite(mean.estimate)
    assert np.isnan([mean.std_error, mean.low, mean.high]).all() == (n_clusters == 1)


def test_empty_clusters_do_not_count():
    interval = clustered.mean(np.array([1.0, 0, 3]), np.array([1, 0, 1]))
    assert (interval.estimate, interval.n_clusters) == (2, 2)


@pytest.mark.parametrize(
    ("totals", "sizes", "message"),
    [
        ([1.0, np.nan], [1, 1], "finite"),
        ([1.0], [1, 1], "go together"),
        ([], [], "no values"),
        ([0.0], [0], "no values"),
    ],
)
def test_what_has_no_mean_is_refused(totals, sizes, message):
    with pytest.raises(ValueError, match=message):
        clustered.mean(np.array(totals), np.array(sizes))
