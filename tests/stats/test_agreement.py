"""Agreement: Krippendorff's own examples, statsmodels, and simulation."""

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa

from imatrix_lab.stats import agreement

# Krippendorff (2011), reliability data of four observers; None is no vote
FOUR = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)


def test_alpha_is_krippendorffs():
    rated = [(unit, v) for row in FOUR for unit, v in enumerate(row) if v is not None]
    units, values = map(np.array, zip(*rated, strict=True))
    assert agreement.krippendorff_alpha(units, values) == pytest.approx(0.849, abs=5e-4)
    assert agreement.krippendorff_alpha(np.array([0, 0, 1, 1]), np.array([1, 1, 2, 2])) == 1
    assert np.isnan(agreement.krippendorff_alpha(np.arange(5), np.arange(5.0)))
    assert np.isnan(agreement.krippendorff_alpha(np.zeros(4, int), np.ones(4)))
    rng = np.random.default_rng(6)
    chance = agreement.krippendorff_alpha(np.repeat(np.arange(2000), 2), rng.random(4000))
    assert chance == pytest.approx(0, abs=0.06)


def answers(rng, n, share):
    """Two raters who give the same answer of three, drawn, in this share beyond chance."""
    shares = (0.5, 0.2, 0.3)
    x, other = rng.choice(3, (2, n), p=shares)
    return x, np.where(rng.random(n) < share, x, other)


def test_kappa_and_its_error_are_statsmodels():
    x, y = answers(np.random.default_rng(1), 2000, 0.4)
    table = np.zeros((3, 3))
    np.add.at(table, (x, y), 1)
    theirs = cohens_kappa(table)
    ours = agreement.cohen_kappa(x, y, np.arange(2000), np.zeros(2000, int))
    assert ours.estimate == pytest.approx(theirs.kappa)
    assert ours.std_error == pytest.approx(theirs.std_kappa, rel=0.02)
    assert (ours.low, ours.high) == pytest.approx((theirs.kappa_low, theirs.kappa_upp), abs=0.002)


@pytest.mark.parametrize("n_raters", [1, 4, 10])
def test_the_interval_covers_kappa(n_raters):
    """People vote on the same prompts; a judge has one verdict on each."""
    rng, n, hits = np.random.default_rng(2), 100, 0
    for _ in range(300):
        x, judge = answers(rng, n, 0.4)  # what the answers are worth, and the judge
        own = rng.choice(3, (n_raters, n), p=(0.5, 0.2, 0.3))
        votes = np.where(rng.random((n_raters, n)) < 0.5, x, own)
        prompts = np.tile(np.arange(n), n_raters)
        raters = np.repeat(np.arange(n_raters), n)
        kappa = agreement.cohen_kappa(votes.ravel(), judge[prompts], prompts, raters)
        hits += kappa.low <= 0.4 * 0.5 <= kappa.high
    assert 0.915 <= hits / 300 <= 0.995


def test_kappa_among_people_is_of_their_pairs():
    x = np.array([0, 0, 1, 2, 2, 1])
    units = np.array([0, 0, 1, 1, 2, 3])
    # the pairs are (0, 0) and (1, 2), each in both orders
    assert agreement.kappa_among(x, units) == pytest.approx((0.5 - 6 / 16) / (1 - 6 / 16))


def test_kappa_that_is_undefined():
    same = np.zeros(5, int)
    assert np.isnan(agreement.cohen_kappa(same, same, np.arange(5), same).estimate)
    none = np.zeros(0, int)
    assert np.isnan(agreement.cohen_kappa(none, none, none, none).estimate)
    assert np.isnan(agreement.kappa_among(none, none))
