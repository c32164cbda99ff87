"""Looking at the evidence after every cluster."""

import numpy as np
import pytest
from scipy import integrate, stats

from imatrix_lab.stats import sequential


def test_e_value_is_the_mixture_likelihood_ratio():
    votes = np.array([1, 1, 0, -1, 1])
    found = sequential.sign_process(votes, a=2.0).log_e
    ratio, _ = integrate.quad(lambda p: p**3 * (1 - p) * stats.beta.pdf(p, 2, 2), 0, 1)
    assert found[-1] == pytest.approx(np.log(ratio * 2**4))
    assert found[2] == found[1]


def test_false_stops_of_the_sign_process_stay_below_alpha():
    rng = np.random.default_rng(1)
    stops = peeks = 0
    for _ in range(1500):
        votes = rng.choice([1, -1], 300)
        stops += sequential.sign_process(votes).stopped_at is not None
        wins = np.cumsum(votes > 0)[9:]
        z = np.abs(2 * wins - np.arange(10, 301)) / np.sqrt(np.arange(10, 301))
        peeks += bool((z > 1.96).any())
    assert 0 < stops / 1500 <= 0.05
    assert peeks / 1500 > 0.2


def test_a_clear_winner_stops_early():
    votes = np.where(np.random.default_rng(2).random(400) < 0.75, 1, -1)
    stopped = sequential.sign_process(votes).stopped_at
    assert stopped is not None
    assert stopped < 120


def test_false_stops_of_the_bounded_mean_stay_below_alpha():
    rng = np.random.default_rng(3)
    stops = 0
    for _ in range(300):
        values = np.clip(rng.standard_t(3, 150) * 0.05, -0.5, 0.5)
        stops += sequential.bounded_mean(values, 0.5).decided_at() is not None
    assert stops / 300 <= 0.05


def test_the_sequence_shrinks_around_the_mean_and_decides():
    rng = np.random.default_rng(4)
    values = np.clip(rng.normal(0.04, 0.05, 400), -0.5, 0.5)
    found = sequential.bounded_mean(values, 0.5)
    assert (np.diff(found.low) >= 0).all()
    assert (np.diff(found.high) <= 0).all()
    assert found.low[-1] < 0.04 < found.high[-1]
    assert found.decided_at() is not None
    assert found.decided_at() > 10
    none = sequential.bounded_mean(values - 0.04, 0.5)
    assert none.decided_at() is None
    assert none.decided_at(margin=0.1) is not None


def test_values_beyond_the_bound_are_refused():
    with pytest.raises(ValueError, match="clip"):
        sequential.bounded_mean(np.array([0.6]), 0.5)
    with pytest.raises(ValueError, match="clip"):
        sequential.bounded_mean(np.array([np.nan]), 0.5)
