"""One question, all its answers."""

import numpy as np
import pytest

from imatrix_lab.stats import binary, comparison, interaction, paired
from imatrix_lab.stats.comparison import Question
from imatrix_lab.stats.metrics import METRICS


def ask(values, codes, margin=None, metric="kld_nats", **rest):
    question = Question("a", "b", "nb", METRICS[metric], margin)
    return comparison.compare(
        question, values, codes, np.random.default_rng(1), n_resamples=300, **rest
    )


def made_up(n_clusters=20, shift=0.0, seed=2):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(n_clusters), 12)
    b = rng.lognormal(-2, 1, len(codes))
    return (b + shift + rng.normal(0, 0.05, len(codes)), b), codes


def test_two_equal_runs_are_equivalent_and_never_better():
    values = np.random.default_rng(3).random(60)
    codes = np.repeat(np.arange(15), 4)
    result = ask((values, values), codes, margin=0.01)
    assert result.verdict() == "equivalent"
    assert (result.estimate, result.p_value, result.detectable) == (0, 1, 0)
    assert ask((values, values), codes).verdict() == "undecided"


def test_not_finite_values_leave_in_pairs():
    (a, b), codes = made_up()
    a, b = a.copy(), b.copy()
    a[0], b[5] = np.nan, np.inf
    result = ask((a, b), codes)
    assert (result.n_excluded, result.n) == (2, len(codes) - 2)
    assert np.isfinite([result.estimate, result.low, result.mean_a, result.mean_b]).all()
    with pytest.raises(ValueError, match="finite in both"):
        ask((np.full(len(b), np.nan), b), codes)


def test_a_document_without_any_finite_value_drops_out():
    (a, b), codes = made_up()
    a = np.where(codes == 3, np.nan, a)
    assert ask((a, b), codes).n_clusters == 19


def test_better_beyond_the_margin_is_not_equivalent():
    values, codes = made_up(shift=-0.2)
    result = ask(values, codes, margin=0.05)
    assert result.p_equivalence > 0.99
    assert result.verdict() == "better"


def test_few_clusters_use_permutations_throughout():
    values, codes = made_up(n_clusters=6, shift=0.3)
    result = ask(values, codes, margin=0.5)
    assert result.method == "permutation"
    assert result.p_value == 2 / 2**6
    assert result.p_equivalence == 1 / 2**6
    sums = paired.Sums.of(values[0] - values[1], codes, 6)
    means = sums.totals / sums.sizes
    assert (result.low, result.high) == pytest.approx((means.min(), means.max()))


def test_five_documents_find_nothing():
    values, codes = made_up(n_clusters=5, shift=9.0)
    result = ask(values, codes)
    assert result.verdict() == "undecided"
    assert result.detectable == float("inf")
    assert (result.low, result.high) == (-np.inf, np.inf)


@pytest.mark.parametrize("n_clusters", [5, 8, 11, 12, 40])
def test_what_is_undecided_needs_more_than_there_is(n_clusters):
    for seed in range(8):
        values, codes = made_up(n_clusters, shift=0.004, seed=seed)
        result = ask(values, codes, margin=0.006)
        if result.verdict() == "undecided":
            assert result.clusters_to_decide > n_clusters
            assert result.n_to_decide > result.n


def test_right_and_wrong_get_exact_answers():
    rng = np.random.default_rng(4)
    codes = np.repeat(np.arange(60), 3)
    b = (rng.random(180) < 0.6).astype(float)
    a = np.where(rng.random(180) < 0.1, 1 - b, b)
    result = ask((a, b), codes, 0.1, "score")
    table, mcnemar = result.items.table, result.items.mcnemar
    assert table.n() == 180
    assert table.only_a - table.only_b == mcnemar.wins_a - mcnemar.wins_b
    assert mcnemar == binary.mcnemar(np.bincount(codes, a - b))
    effective = table.effective(result.paired.design_effect)
    assert (result.items.newcombe_low, result.items.newcombe_high) == binary.newcombe(effective)
    assert result.items.newcombe_low < result.estimate < result.items.newcombe_high
    assert ask((a / 2, b), codes, metric="score").items is None


@pytest.mark.parametrize("n_clusters", [15, 100, 150, 180, 200, 450])
def test_never_differing_is_not_certainty(n_clusters):
    """A difference of 2 points or more stays unseen with probability (1 - 0.02)^G at most."""
    right = np.tile([0.0, 1.0], n_clusters)
    result = ask((right, right), np.repeat(np.arange(n_clusters), 2), 0.02, "score")
    unseen = 0.98**n_clusters
    assert (result.verdict() == "equivalent") == (result.p_equivalence <= 0.025)
    assert result.verdict() == ("undecided" if unseen > 0.025 else "equivalent")


def test_samples_replace_documents_as_the_error_term():
    values, codes = made_up(shift=0.02)
    result = ask(values, codes, margin=0.05)
    wide = interaction.Contrast(
        0.02, 0.03, -0.1, 0.14, 2.0, 0.6, 0.003, 0.0299, True, {"nb": 2, "en": 2}, 240, 20, 0.95
    )
    sampled = comparison.with_samples(result, wide)
    assert (sampled.method, sampled.p_value, sampled.df) == ("samples", 0.6, 2.0)
    assert sampled.verdict() == "undecided"
    assert sampled.n_to_decide == 0
    assert sampled.paired == result.paired
    assert sampled.p_equivalence > result.p_equivalence
