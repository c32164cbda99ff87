"""Paired differences by cluster: against scipy, statsmodels, arch, and by simulation."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from imatrix_lab.stats import clustered, paired


def differences(rng, n_clusters, shift=0.0, spread=0.1):
    """Token differences of documents that differ: (values, codes)."""
    sizes = rng.integers(30, 120, n_clusters)
    codes = np.repeat(np.arange(n_clusters), sizes)
    own = rng.normal(shift, spread, n_clusters)
    return own[codes] + 0.5 * rng.standard_t(4, len(codes)), codes


def test_standard_error_is_cr3_and_p_close_to_its_t():
    rng = np.random.default_rng(1)
    values, codes = differences(rng, 24, 0.03)
    mean = paired.mean_difference(paired.Sums.of(values, codes, 24))
    fit = sm.OLS(values, np.ones(len(values))).fit(
        cov_type="cluster-crv3", cov_kwds={"groups": codes}, use_t=True
    )
    assert mean.interval.std_error == pytest.approx(fit.bse[0], rel=1e-8)
    assert mean.p_value == pytest.approx(fit.pvalues[0], abs=0.04)
    assert not mean.exact
    naive = sm.OLS(values, np.ones(len(values))).fit().bse[0]
    assert mean.design_effect == pytest.approx((fit.bse[0] / naive) ** 2, rel=2 / len(values))


def test_few_clusters_take_the_exact_permutation_of_scipy():
    rng = np.random.default_rng(2)
    values, codes = differences(rng, 9, 0.1)
    sums = paired.Sums.of(values, codes, 9)
    mean = paired.mean_difference(sums)
    theirs = stats.permutation_test(
        (sums.totals, np.zeros(9)), lambda a, b: np.sum(a - b), permutation_type="samples",
        n_resamples=np.inf, vectorized=False,
    )  # fmt: skip
    assert mean.exact
    assert mean.method == "permutation"
    assert mean.p_value == pytest.approx(theirs.pvalue)
    assert (mean.interval.low <= 0 <= mean.interval.high) == (mean.p_value > 0.05)


def test_two_equal_runs_are_no_finding():
    sums = paired.Sums.of(np.zeros(90), np.repeat(np.arange(15), 6), 15)
    mean = paired.mean_difference(sums)
    assert mean.p_value == 1
    assert (mean.interval.low, mean.interval.high) == (0, 0)
    assert np.isnan(mean.design_effect)


def test_the_same_difference_everywhere_is_as_sure_as_its_documents_are_many():
    sums = paired.Sums.of(np.full(90, 0.25), np.repeat(np.arange(15), 6), 15)
    mean = paired.mean_difference(sums)
    assert mean.p_value == pytest.approx(2.0**-14)
    assert (mean.interval.low, mean.interval.high) == (0.25, 0.25)


def test_one_cluster_is_sent_elsewhere_and_nan_is_refused():
    sums = paired.Sums.of(np.arange(5.0), np.zeros(5, int), 1)
    with pytest.raises(ValueError, match="one_document"):
        paired.mean_difference(sums)
    with pytest.raises(ValueError, match="finite"):
        paired.Sums.of(np.array([1.0, np.nan]), np.array([0, 1]), 2)
    sums = paired.Sums.of_finite(np.array([1.0, np.nan]), np.array([0, 1]), 2)
    assert (sums.totals.tolist(), sums.sizes.tolist()) == ([1, 0], [1, 0])


def test_intra_cluster_correlation_is_that_of_one_way_anova():
    rng = np.random.default_rng(7)
    codes = np.repeat(np.arange(200), 8)
    values = rng.normal(0, 1, 200)[codes] + rng.normal(0, 2, len(codes))
    f = stats.f_oneway(*[values[codes == g] for g in range(200)]).statistic
    mean = paired.Sums.of(values, codes, 200).intra_cluster_correlation()
    assert mean == pytest.approx((f - 1) / (f + 7))
    assert mean == pytest.approx(0.2, abs=0.06)
    alone = paired.Sums.of(values[:9], np.arange(9), 9)
    assert np.isnan(alone.intra_cluster_correlation())


def test_one_document_knows_that_neighbouring_windows_are_alike():
    rng = np.random.default_rng(12)
    hits = naive = 0
    for _ in range(60):
        noise = rng.normal(0, 1, 220)
        for i in range(1, 220):
            noise[i] += 0.6 * noise[i - 1]
        mean = paired.one_document(noise[20:] * 100, np.full(200, 100.0), rng, 400)
        hits += mean.interval.low <= 0 <= mean.interval.high
        naive += abs(stats.ttest_1samp(noise[20:], 0).statistic) < 1.96
    assert mean.method == "stationary bootstrap"
    assert hits / 60 > 0.83 > naive / 60
    assert (mean.p_value > 0.05) == (mean.interval.low <= 0 <= mean.interval.high)


def test_a_short_document_is_refused():
    with pytest.raises(ValueError, match="20 needed"):
        paired.one_document(np.ones(19), np.ones(19), np.random.default_rng(13))


def test_the_few_cluster_interval_covers_its_truth():
    rng = np.random.default_rng(14)
    hits = 0
    for _ in range(400):
        sums = paired.Sums.of(*differences(rng, 8), 8)
        mean = paired.mean_difference(sums).interval
        hits += mean.low <= 0 <= mean.high
    assert 0.925 <= hits / 400 <= 0.98
    assert isinstance(mean, clustered.Interval)
