"""Families of tests: R's p.adjust and multtest, and simulation."""

import numpy as np
import pytest

from imatrix_lab.stats import multiplicity

P = np.array([0.001, 0.012, 0.03, 0.04, 0.2, 0.7])


def test_holm_and_bh_are_those_of_r():
    # R 4.2.2: p.adjust(p, "holm"), p.adjust(p, "BH")
    np.testing.assert_allclose(multiplicity.holm(P), [0.006, 0.06, 0.12, 0.12, 0.4, 0.7])
    np.testing.assert_allclose(
        multiplicity.benjamini_hochberg(P), [0.006, 0.036, 0.06, 0.06, 0.24, 0.7]
    )


def test_a_test_that_could_not_be_done_does_not_count():
    adjusted = multiplicity.holm(np.array([0.01, np.nan, 0.2]))
    np.testing.assert_allclose(adjusted, [0.02, np.nan, 0.2])
    assert np.isnan(multiplicity.holm(np.array([np.nan]))).all()


def test_max_t_is_that_of_multtest():
    # R 4.2.2, multtest 2.54.0: mt.maxT(pairs, test="pairt", side="abs", B=0), all 1024 flips
    differences = np.array([
        [1.14, 1.72, -0.41, 2.3, 2.29, 0.69, -0.19, -0.06, 0.11, 0.99],
        [2.71, -0.96, -0.73, 1.57, -0.99, 0.65, -0.82, -2.11, 0.13, 0.09],
        [1.99, 0.38, 1.42, 2.03, 0.5, 0.1, 0.8, 1.18, -1.16, -0.9],
        [2, 1.15, 2.76, 3.14, 1.76, 1.95, -1.03, -1.72, -1.67, 0.41],
    ]).T  # fmt: skip
    adjusted = multiplicity.max_t(differences, np.random.default_rng(1))
    np.testing.assert_allclose(
        adjusted, [0.1015625, 0.912109375, 0.275390625, 0.275390625], rtol=1e-9
    )
    sampled = multiplicity.max_t(differences, np.random.default_rng(1), n_resamples=1000)
    np.testing.assert_allclose(sampled, adjusted, atol=0.05)


def test_max_t_of_equal_tests_costs_nothing_and_holds_its_level():
    rng = np.random.default_rng(2)
    twins = holm = apart = 0
    for _ in range(300):
        one = rng.standard_t(4, 30)
        many = rng.standard_t(4, (30, 8))
        same = np.repeat(one[:, None], 8, axis=1)
        p = multiplicity.max_t(same, rng, 199)
        assert np.ptp(p) == 0
        twins += p.min() <= 0.05
        holm += 8 * p.min() <= 0.05
        apart += multiplicity.max_t(many, rng, 199).min() <= 0.05
    assert 0.02 <= twins / 300 <= 0.09
    assert 0.02 <= apart / 300 <= 0.09
    assert holm < twins


def test_nothing_differs_is_no_finding():
    totals = np.stack([np.zeros(9), np.ones(9)], axis=1)
    adjusted = multiplicity.max_t(totals, np.random.default_rng(3))
    assert adjusted[0] == 1
    assert adjusted[1] == pytest.approx(2 / 2**9)
