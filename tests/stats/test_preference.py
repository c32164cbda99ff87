"""Preferences: by simulation, and against statsmodels."""

import numpy as np
import pytest
import statsmodels.api as sm

from imatrix_lab.stats import equivalence, preference
from imatrix_lab.stats.preference import PlannedVotes


def votes(rng, n_raters, taste, n_prompts=120, mean=0.0):
    prompts = np.repeat(np.arange(n_prompts), n_raters)
    raters = np.tile(np.arange(n_raters), n_prompts)
    latent = (
        mean
        + 0.6 * rng.standard_normal(n_prompts)[prompts]
        + taste * rng.standard_normal(n_raters)[raters]
        + rng.standard_normal(len(prompts))
    )
    return np.sign(latent) * (np.abs(latent) > 0.4), prompts, raters


@pytest.mark.parametrize(("n_raters", "taste"), [(1, 0.0), (5, 0.0), (5, 0.3), (12, 0.3)])
def test_equal_systems_are_told_apart_in_few_cases(n_raters, taste):
    rng = np.random.default_rng(1)
    hits = np.zeros(2)
    for _ in range(400):
        choices, prompts, raters = votes(rng, n_raters, taste)
        mean = preference.mean_preference(choices, prompts, raters)
        by_prompt = preference.mean_preference(choices, prompts, np.zeros_like(raters))
        hits += (mean.p_value <= 0.05, by_prompt.p_value <= 0.05)
    assert hits[0] / 400 <= 0.075
    if taste:  # who ignores the raters is wrong
        assert hits[1] / 400 > 0.15


def test_the_interval_covers_the_mean():
    rng = np.random.default_rng(2)
    truth = np.mean([votes(rng, 20, 0.3, 400, 0.3)[0].mean() for _ in range(200)])
    hits = 0
    for _ in range(500):
        mean = preference.mean_preference(*votes(rng, 6, 0.3, mean=0.3))
        hits += mean.interval.low <= truth <= mean.interval.high
    assert 0.92 <= hits / 500 <= 0.99
    assert mean.of_people
    assert mean.se_raters > 0


def test_few_raters_speak_for_themselves():
    choices, prompts, raters = votes(np.random.default_rng(3), 2, 0.0)
    mean = preference.mean_preference(choices, prompts, raters)
    assert not mean.of_people
    with pytest.raises(ValueError, match="one prompt"):
        preference.mean_preference(np.ones(3), np.zeros(3, int), np.arange(3))


def test_an_interval_ends_where_all_win():
    choices = np.array([1] * 37 + [-1] * 3)
    interval = preference.mean_preference(choices, np.arange(40) // 4, np.arange(40) % 4).interval
    assert 0 < interval.low < 0.85 < interval.high <= 1


def test_votes_that_are_all_alike():
    mean = preference.mean_preference(np.ones(40), np.arange(40) // 4, np.arange(40) % 4)
    assert (mean.interval.estimate, mean.p_value) == (1, 0)


def drawn_votes(rng, planned, n_prompts, effect):
    """Votes with just the correlations planned: some repeat the prompt's, some the person's."""
    shape = (n_prompts, planned.n_raters)

    def draw(*size):
        u = rng.random(size)
        first = (planned.decided + effect) / 2
        return np.where(u < first, 1, np.where(u < planned.decided, -1, 0))

    which = rng.random(shape)
    by_prompt, by_rater = planned.icc_prompts**0.5, planned.icc_raters**0.5
    own = np.where(which < by_prompt + by_rater, draw(1, shape[1]), draw(*shape))
    choices = np.where(which < by_prompt, draw(shape[0], 1), own)
    prompts, raters = (a.ravel() for a in np.indices(shape))
    return choices.ravel(), prompts, raters


@pytest.mark.parametrize(
    ("n_raters", "taste"), [(1, 0.0), (3, 0.0), (3, 0.03), (5, 0.03), (12, 0.0), (12, 0.03)]
)
def test_planned_power_is_the_share_of_simulations_that_find_it(n_raters, taste):
    rng, n, margin = np.random.default_rng(7), 100, 0.35
    planned = PlannedVotes(0.7, 0.25, taste, n_raters)
    found = np.zeros(2)
    for _ in range(250):
        by_effect = [preference.mean_preference(*drawn_votes(rng, planned, n, e)) for e in (0.2, 0)]
        found += (by_effect[0].p_value <= 0.05,
                  equivalence.tost(by_effect[1].interval, margin) <= 0.025)  # fmt: skip
    promised = planned.power_at(n, 0.2), planned.power_at(n, 0.0, margin=margin)
    np.testing.assert_allclose(found / 250, promised, atol=0.08)


def test_planned_votes_need_people_more_than_prompts():
    few, many = (PlannedVotes(0.7, 0.25, 0.02, n).analyse(150, 0.1) for n in (3, 30))
    assert (few.clusters_superiority, few.clusters_equivalence) == (0, 0)
    assert 0 < many.clusters_superiority < many.clusters_equivalence
    planned = PlannedVotes(0.7, 0.25, 0.02, 30)
    assert planned.power_at(many.clusters_superiority, 0.1) >= 0.8
    assert planned.power_at(many.clusters_superiority - 1, 0.1) < 0.8
    assert planned.power_at(150, many.detectable) == pytest.approx(0.8, abs=1e-3)


def davidson(rng, n, log_strengths, log_ties):
    pairs = np.array([rng.choice(len(log_strengths), 2, replace=False) for _ in range(n)])
    a, b = np.array(log_strengths)[pairs].T
    weights = np.exp(np.column_stack([a, log_ties + (a + b) / 2, b]))
    drawn = rng.random(n)[:, None] < np.cumsum(weights, axis=1) / weights.sum(1, keepdims=True)
    return pairs, 1 - drawn.argmax(axis=1)


def test_two_systems_have_the_odds_of_their_votes():
    outcomes = np.repeat([1, 0, -1], [30, 15, 20])
    pairs = np.tile([0, 1], (65, 1))
    fit = preference.strengths(pairs, outcomes, np.arange(65), 2)
    assert fit.log_strengths[0] - fit.log_strengths[1] == pytest.approx(np.log(30 / 20), abs=1e-5)
    assert fit.log_ties == pytest.approx(np.log(15 / np.sqrt(30 * 20)), abs=1e-5)


def test_three_systems_as_a_loglinear_model():
    pairs, outcomes = davidson(np.random.default_rng(4), 900, (0.5, 0.0, -0.5), -0.3)
    fit = preference.strengths(pairs, outcomes, np.arange(900), 3)
    rows, counts = [], []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        for result in (1, 0, -1):
            same = (pairs == (i, j)).all(1) & (outcomes == result)
            turned = (pairs == (j, i)).all(1) & (outcomes == -result)
            counts.append(np.sum(same | turned))
            row = np.zeros(7)
            row[{1: [i], 0: [i, j], -1: [j]}[result]] = {1: 1, 0: 0.5, -1: 1}[result]
            row[3] = result == 0
            row[4 + (i + j - 1)] = 1  # the number of votes on this pair
            rows.append(row)
    theirs = sm.GLM(counts, np.array(rows)[:, 1:], family=sm.families.Poisson()).fit()
    expected = np.array([0, *theirs.params[:2]])
    np.testing.assert_allclose(fit.log_strengths, expected - expected.mean(), atol=1e-4)
    assert fit.log_ties == pytest.approx(theirs.params[2], abs=1e-4)


def test_errors_of_strengths_are_those_of_repetition():
    rng = np.random.default_rng(5)
    fits = []
    for _ in range(300):
        pairs, outcomes = davidson(rng, 150, (0.4, 0.0, -0.4), -0.5)
        fits.append(preference.strengths(pairs, outcomes, np.arange(150), 3))
    spread = np.std([f.log_strengths for f in fits], axis=0)
    np.testing.assert_allclose(np.mean([f.std_errors for f in fits], axis=0), spread, rtol=0.12)


def test_a_system_that_always_wins_has_no_strength():
    with pytest.raises(ValueError, match="no finite strength"):
        preference.strengths(np.tile([0, 1], (9, 1)), np.ones(9), np.arange(9), 2)
