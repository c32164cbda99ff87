"""Samples of rows: what they estimate, and of whom they consist."""

import numpy as np
import pytest

from imatrix_lab.quantize import rows


def test_sums_are_estimated_without_bias_from_few_rows():
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(0, 2, 5000)
    amounts = sizes * rng.uniform(0.5, 1.5, 5000)
    sample = rows.draw(sizes, 500)
    assert len(sample.rows) == 500
    estimate = (amounts[sample.rows] * sample.weights).sum()
    assert estimate == pytest.approx(amounts.sum(), rel=0.02)
    evenly = amounts[::10].sum() * 10
    assert abs(evenly / amounts.sum() - 1) > 3 * abs(estimate / amounts.sum() - 1)


def test_large_rows_are_there_for_sure_and_empty_ones_never():
    sizes = np.ones(1000)
    sizes[[3, 500, 999]] = 400
    sizes[100:200] = 0
    sample = rows.draw(sizes, 50)
    weights = dict(zip(sample.rows.tolist(), sample.weights.tolist(), strict=True))
    assert weights[3] == weights[500] == weights[999] == 1
    assert not set(weights) & set(range(100, 200))
    assert sorted(weights) == sample.rows.tolist()
    assert sum(weights.values()) == pytest.approx(900, rel=0.03)


@pytest.mark.parametrize("n", [5, 7, 100])
def test_as_many_rows_as_there_are_come_to_all_of_them(n):
    sample = rows.draw(np.array([1.0, 5.0, 0.0, 2.0, 9.0, 1e-9]), n)
    assert sample.rows.tolist() == [0, 1, 3, 4, 5]
    assert sample.weights.tolist() == [1] * 5


def test_a_tensor_of_zeros_has_no_rows():
    assert rows.draw(np.zeros(10), 4).rows.size == 0
