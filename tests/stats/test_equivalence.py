"""Equivalence: R, statsmodels, simulation; and the verdict's rules."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from imatrix_lab.stats import clustered, equivalence, paired

VALUES = np.array([0.4, -0.9, 1.3, 0.2, 0.7, -0.5, 0.1, 0.9, -0.2, 0.3, 0.6, -0.4])


def test_tost_is_that_of_r_and_statsmodels():
    interval = clustered.mean(VALUES, np.ones(12))
    # R 4.2.2: max of t.test(d, mu=-1, alternative="greater"), t.test(d, mu=1, alternative="less")
    assert equivalence.tost(interval, 1.0) == pytest.approx(0.000585946914495, rel=1e-9)
    mirrored = clustered.mean(-VALUES, np.ones(12))
    assert equivalence.tost(mirrored, 1.0) == pytest.approx(0.000585946914495, rel=1e-9)
    p, _, _ = ttost_paired(VALUES, np.zeros(12), -1.0, 1.0)
    assert equivalence.tost(interval, 1.0) == pytest.approx(p)


def test_tost_rejects_where_the_95_percent_interval_is_inside():
    interval = clustered.mean(VALUES, np.ones(12))
    edge = max(abs(interval.low), abs(interval.high))
    for margin, inside in ((edge * 1.001, True), (edge * 0.999, False)):
        assert (equivalence.tost(interval, margin) <= 0.025) == inside


def test_permutation_is_close_to_t_and_exact():
    sums = paired.Sums.of(VALUES[:10], np.arange(10), 10)
    p = equivalence.tost_by_permutation(sums, 0.8)
    theirs = [
        stats.permutation_test(
            (VALUES[:10] + shift,), np.sum, permutation_type="samples", alternative=side,
            n_resamples=np.inf,
        ).pvalue
        for shift, side in ((0.8, "greater"), (-0.8, "less"))
    ]  # fmt: skip
    assert p == pytest.approx(max(theirs))


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan")])
def test_a_margin_must_be_positive(margin):
    interval = clustered.mean(VALUES, np.ones(12))
    sums = paired.Sums.of(VALUES, np.arange(12), 12)
    with pytest.raises(ValueError, match="positive"):
        equivalence.tost(interval, margin)
    with pytest.raises(ValueError, match="positive"):
        equivalence.tost_by_permutation(sums, margin)


def test_no_spread_at_all():
    same = clustered.mean(np.zeros(5), np.ones(5))
    assert equivalence.tost(same, 0.1) == 0
    off = clustered.mean(np.full(5, 0.2), np.ones(5))
    assert equivalence.tost(off, 0.1) == 1


@pytest.mark.parametrize(
    ("estimate", "p", "p_equivalence", "lower_is_better", "word"),
    [
        (-1, 0.01, None, True, "better"),
        (-1, 0.01, None, False, "worse"),
        (1, 0.01, 0.9, True, "worse"),
        (1, 0.01, 0.9, False, "better"),
        (1, 0.2, 0.024, True, "equivalent"),
        (1, 0.2, 0.026, True, "undecided"),
        (1, 0.01, 0.02, True, "equivalent"),
        (1, 0.2, 0.2, True, "undecided"),
        (1, 0.2, None, True, "undecided"),
        (0, 0.0, None, True, "undecided"),
    ],
)
def test_verdict(estimate, p, p_equivalence, lower_is_better, word):
    assert equivalence.verdict(estimate, p, p_equivalence, lower_is_better) == word


def test_with_the_clusters_asked_for_nothing_stays_undecided():
    """And with a fifth fewer, something does."""
    rng = np.random.default_rng(3)
    pilot = clustered.mean(rng.normal(0, 1, 40), np.ones(40))
    spread = pilot.std_error * 40**0.5
    needed = equivalence.clusters_to_decide(pilot, 0.5)

    def words(n):
        verdicts = set()
        for true in np.linspace(-1, 1, 201):
            i = clustered.Interval(true, spread / n**0.5, 0, 0, n, n, n - 1)
            p_equivalence = equivalence.tost(i, 0.5)
            verdicts.add(equivalence.verdict(true, paired.t_test(i), p_equivalence, True))
        return verdicts

    assert words(needed) == {"better", "worse", "equivalent"}
    assert "undecided" in words(int(needed * 0.8))


def test_clusters_to_decide_needs_a_spread():
    with pytest.raises(ValueError, match="one cluster"):
        equivalence.clusters_to_decide(clustered.mean(np.ones(1), np.ones(1)), 0.1)
    assert equivalence.clusters_to_decide(clustered.mean(np.ones(3), np.ones(3)), 0.1) == 3
