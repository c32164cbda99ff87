"""The planner: R, statsmodels, and simulation."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from imatrix_lab.compare.benchmarks import group_sizes
from imatrix_lab.stats import paired, power, sign_flips
from imatrix_lab.stats.power import Design


def test_superiority_is_that_of_r_and_statsmodels():
    # R 4.2.2: power.t.test(n=30, delta=0.4, sd=1, type="one.sample", strict=TRUE)$power
    assert power.superiority(0.4, 30**-0.5, 29) == pytest.approx(0.562813607141, rel=1e-9)
    assert power.superiority(0.2, 0.1, 15) == pytest.approx(
        TTestPower().power(0.2 / 0.1 / 4, 16, 0.05)
    )
    # R 4.2.2: power.t.test(power=.8, delta=0.4, sd=1, type="one.sample")$n is 51.0096
    assert power.clusters_for_superiority(Design(1.0), 0.4) == 52


def test_detectable_is_what_superiority_detects():
    design = Design(0.3, icc=0.2, cluster_size=4, size_cv=0.5)
    mde = power.detectable(design, 60)
    assert power.superiority(mde, design.std_error(60), 59) == pytest.approx(0.8, abs=1e-5)
    assert power.clusters_for_superiority(design, mde * 1.0001) == 60
    assert power.detectable(design, 1) == float("inf")


@pytest.mark.parametrize("effect", [0.0, 0.15])
@pytest.mark.parametrize("n", [8, 30])
def test_equivalence_is_that_of_simulated_tost(effect, n):
    rng = np.random.default_rng(1)
    margin, se = 0.7 * (30 / n) ** 0.5, n**-0.5
    values = rng.normal(effect, 1, (40_000, n))
    means, ses = values.mean(axis=1), values.std(axis=1, ddof=1) / n**0.5
    inside = np.abs(means) + stats.t.ppf(0.975, n - 1) * ses < margin
    assert power.equivalence(effect, margin, se, n - 1) == pytest.approx(inside.mean(), abs=0.008)


def test_equivalence_at_the_margin_is_the_error_rate():
    assert power.equivalence(1.0, 1.0, 0.1, 50) == pytest.approx(0.025, abs=1e-6)
    needed = power.clusters_for_equivalence(Design(1.0), 0.5)
    assert power.equivalence(0, 0.5, needed**-0.5, needed - 1) >= 0.8
    assert power.equivalence(0, 0.5, (needed - 1) ** -0.5, needed - 2) < 0.8


@pytest.mark.parametrize("df", [1, 1.4, 3, 30, 3000, 2.5e6])
@pytest.mark.parametrize("shift", [0.0, 0.3, 2.8, 5.0])
def test_superiority_is_the_noncentral_t(df, shift):
    cut = stats.t.ppf(0.975, df)
    theirs = stats.nct.sf(cut, df, shift) + stats.nct.cdf(-cut, df, shift)
    assert power.superiority(shift, 1.0, df) == pytest.approx(theirs, abs=1e-6)


def test_no_spread_needs_no_power():
    assert power.superiority(0.1, 0.0, 5) == 1
    assert power.superiority(0.0, 0.0, 5) == 0
    assert power.equivalence(0.1, 0.2, 0.0, 5) == 1
    assert power.detectable_at(0.0, 5) == 0


def test_a_design_from_a_pilot_predicts_the_standard_error():
    rng = np.random.default_rng(2)
    sizes = rng.integers(2, 10, 400)
    codes = np.repeat(np.arange(400), sizes)
    values = rng.normal(0, 0.5, 400)[codes] + rng.normal(0, 1, len(codes))
    sums = paired.Sums.of(values, codes, 400)
    design = power.from_pilot(sums)
    seen = paired.mean_difference(sums).interval.std_error
    assert design.std_error(400) == pytest.approx(seen, rel=0.1)
    assert design.icc == pytest.approx(0.2, abs=0.05)
    with pytest.raises(ValueError, match="do not differ"):
        power.from_pilot(paired.Sums.of(np.zeros(4), np.arange(4), 4))
    for n_clusters in (1, 2):  # of which one has values
        with pytest.raises(ValueError, match="how they differ is unknown"):
            power.from_pilot(paired.Sums.of(values[:99], np.zeros(99, int), n_clusters))


def test_few_large_groups_make_the_standard_error_vary():
    """And with it power, as simulation has it: large groups seldom differ."""
    sizes, effect = np.repeat([1, 20], [2400, 48]), 0.025
    n = len(sizes)
    design = power.binary_design(0.05, 1.0, sizes)
    even = power.binary_design(0.05, 1.0, np.full(n, 2))
    assert design.unrest(n) > 3 * even.unrest(n)
    found = _found(sizes, 0.05, effect, 0.05, 1000)
    assert power.design_power(design, n, effect) == pytest.approx(found, abs=0.04)


def _found(sizes, discordance, effect, alpha, n_simulations):
    """Return how often groups that answer as one show the effect."""
    rng = np.random.default_rng(5)
    hits, n = 0, len(sizes)
    for _ in range(n_simulations):
        totals = np.where(rng.random(n) < discordance, sizes, 0)
        totals = totals * np.where(rng.random(n) < (1 + effect / discordance) / 2, 1, -1)
        hits += sign_flips.p_value(totals[totals != 0])[0] <= alpha
    return hits / n_simulations


SHARES = (0.005, 0.02, 0.05, 0.1, 0.5)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3, 0.025])
@pytest.mark.parametrize("icc", [0.0, 1.0])
@pytest.mark.parametrize("part", [0.3, 0.75, 0.95, 1.0])
def test_needed_is_from_where_on_power_suffices(part, icc, alpha):
    """And never so few that a handful of discordant answers is not expected."""
    for discordance in SHARES:
        one = power.binary_design(discordance, icc, group_sizes("mixeval"))
        for design, effect in ((one, part * discordance), (one.doubled(), part * discordance)):
            n = power.clusters_for_superiority(design, effect, alpha=alpha)
            assert n * discordance > 5
            more = np.unique(np.geomspace(n, 20 * n, 60).astype(int))
            assert min(power.design_power(design, k, effect, alpha) for k in more) > 0.79
            fewer = np.unique(np.geomspace(2, n - 1, 60).astype(int))
            assert max(power.design_power(design, k, effect, alpha) for k in fewer) < 0.8


@pytest.mark.parametrize(
    ("task", "discordance", "effect", "alpha"),
    [
        ("mixeval", 0.02, 0.015, 0.05), ("mixeval", 0.02, 0.019, 0.05),
        ("mixeval", 0.02, 0.015, 0.025), ("mixeval", 0.05, 0.03, 0.05),
        ("", 0.02, 0.015, 0.05), ("", 0.1, 0.05, 0.05),
    ],
)  # fmt: skip
def test_needed_is_enough_where_few_answers_differ(task, discordance, effect, alpha):
    sizes = np.array(group_sizes(task)) if task else np.ones(1, int)
    design = power.binary_design(discordance, 1.0, sizes)
    n = power.clusters_for_superiority(design, effect, alpha=alpha)
    drawn = np.random.default_rng(1).choice(sizes, n)
    assert _found(drawn, discordance, effect, alpha, 800) == pytest.approx(0.8, abs=0.06)


def test_where_nothing_is_expected_to_differ_nothing_is_found():
    design = power.binary_design(0.02, 1.0, group_sizes("mixeval"))
    for n in (2, 5, 20, 100):
        assert power.design_power(design, n, 0.015) < 0.01
        assert power.detectable(design, n) == float("inf")
    assert 0.015 < power.detectable(design, 500) <= 0.02
    # no difference is larger than the share of answers that differ
    assert power.design_power(design, 300, 0.3) == power.design_power(design, 300, 0.02)


def test_a_pilot_in_which_few_items_differ_needs_some_that_do():
    differences = np.zeros(1000)
    differences[:20] = 1
    design = power.from_pilot(paired.Sums.of(differences, np.arange(1000), 1000))
    needed = power.clusters_for_superiority(design, 0.1)
    assert needed * 0.02 > 6
    assert power.detectable(design, 100) == float("inf")


def test_a_normal_design_is_plain_noncentral_t():
    design = Design(1.0)
    alone = power.superiority(0.4, 30**-0.5, 29)
    assert power.design_power(design, 30, 0.4) == pytest.approx(alone)
    assert power.design_power(design, 30, 0.1, margin=0.8) == power.equivalence(
        0.1, 0.8, 30**-0.5, 29
    )
    slightly = Design(1.0, kurtosis=3.001)
    for margin in (None, 0.8):
        a, b = (power.design_power(d, 30, 0.1, margin=margin) for d in (design, slightly))
        assert a == pytest.approx(b, abs=1e-3)


def test_binary_design():
    assert power.binary_design(0.04).sd == pytest.approx(0.2)
    with pytest.raises(ValueError, match="discordance"):
        power.binary_design(0.0)


def test_analysis_with_and_without_a_margin():
    design = Design(0.3, icc=0.2, cluster_size=4, size_cv=0.5)
    full, bare = (power.analyse(design, 60, m, alpha=0.01) for m in (0.1, float("nan")))
    assert full.detectable == bare.detectable == power.detectable(design, 60, alpha=0.01)
    assert full.power_superiority == power.design_power(design, 60, 0.1, 0.01)
    assert full.power_equivalence == power.design_power(design, 60, 0.0, 0.01, 0.1)
    assert full.clusters_superiority == power.clusters_for_superiority(design, 0.1, alpha=0.01)
    assert full.clusters_equivalence == power.clusters_for_equivalence(design, 0.1, alpha=0.01)
    assert (bare.clusters_superiority, bare.clusters_equivalence) == (0, 0)
    alone = power.analyse(design, 1, 0.1)
    assert (alone.detectable, alone.power_superiority) == (float("inf"), 0)


def test_planned_power_comes_true_on_clustered_items():
    """Discordant answers in groups of unequal size, effect at the planner's 80 %."""
    rng = np.random.default_rng(3)
    sizes = rng.choice([1, 1, 1, 2, 5], 300)
    codes = np.repeat(np.arange(300), sizes)
    discordance, icc = 0.2, 0.5
    design = power.binary_design(discordance, icc, sizes)
    effect = power.detectable(design, 300)
    share = (1 + effect / discordance) / 2
    hits = 0
    for _ in range(1500):
        together = (rng.random(300) < icc)[codes]

        def draw(p, together=together):
            return np.where(together, (rng.random(300) < p)[codes], rng.random(len(codes)) < p)

        # a group answers alike with probability icc, else each item for itself
        value = draw(discordance) * np.where(draw(share), 1, -1)
        sums = paired.Sums.of(value, codes, 300)
        hits += sign_flips.p_value(sums.totals)[0] <= 0.05
    assert hits / 1500 == pytest.approx(0.8, abs=0.04)
