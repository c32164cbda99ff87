"""Differences of quantiles, by simulation."""

import numpy as np
import pytest
from scipy import stats

from imatrix_lab.stats import quantiles


def test_tails_of_paired_runs_cancel_what_they_share():
    rng = np.random.default_rng(8)
    codes = np.repeat(np.arange(40), 200)
    shared = rng.lognormal(0, 1, 8000) * np.exp(rng.normal(0, 0.5, 40))[codes]
    a, b = (quantiles.tails(shared * s, codes, (0.5, 0.99), np.random.default_rng(9), 2000)
            for s in (1.1, 1.0))  # fmt: skip
    alone = quantiles.tails(shared, codes, (0.5, 0.99), np.random.default_rng(10), 2000)
    for moved, unpaired, q in zip(
        quantiles.difference(a, b), quantiles.difference(a, alone), (0.5, 0.99), strict=True
    ):
        assert moved.estimate == pytest.approx(0.1 * np.quantile(shared, q), rel=0.02)
        assert moved.low < moved.estimate < moved.high
        assert moved.std_error < 0.3 * unpaired.std_error
    with pytest.raises(ValueError, match="same tokens"):
        quantiles.difference(a, quantiles.tails(shared, codes, (0.5,), rng, 2000))


def test_tail_difference_covers_its_truth():
    rng = np.random.default_rng(11)
    truth = 0.05 * stats.norm.ppf(0.99)
    hits = 0
    for _ in range(200):
        codes = np.repeat(np.arange(25), 150)
        shared = rng.normal(0, 0.3, 25)[codes] + rng.normal(0, 0.95394, len(codes))
        a, b = 1.05 * shared, shared
        state = int(rng.integers(1 << 30))
        drawn = (
            quantiles.tails(x, codes, (0.99,), np.random.default_rng(state), 400) for x in (a, b)
        )
        (found,) = quantiles.difference(*drawn)
        hits += found.low <= truth <= found.high
    assert 0.9 <= hits / 200 <= 0.985
