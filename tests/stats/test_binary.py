"""Right and wrong on the same items: R, statsmodels, evalstats, published values."""

import numpy as np
import pytest
from evalstats.core.resampling import newcombe_mover_paired_ci
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from imatrix_lab.stats import binary, sign_flips
from imatrix_lab.stats.binary import PairedCounts


@pytest.mark.parametrize(
    ("wins", "losses", "exact"),
    [  # R 4.2.2: binom.test(b, n)$p.value
        (12, 4, 0.0768127441406),
        (61, 42, 0.0756191075863),
    ],
)
def test_mcnemar_is_that_of_r_and_statsmodels(wins, losses, exact):
    differences = np.repeat([1, -1, 0], [wins, losses, 50])
    result = binary.mcnemar(differences)
    assert result.p_exact == pytest.approx(exact, rel=1e-10)
    assert (result.wins_a, result.wins_b, result.n_clusters) == (wins, losses, wins + losses)
    theirs = statsmodels_mcnemar([[50, wins], [losses, 0]], exact=True)
    assert result.p_exact == pytest.approx(theirs.pvalue)


def test_clustered_mcnemar_is_the_permutation_of_clusters():
    rng = np.random.default_rng(1)
    differences = rng.integers(-4, 6, 12)
    result = binary.mcnemar(differences)
    enumerated, exact = sign_flips.p_value(differences.astype(float))
    assert exact
    assert result.p_exact == pytest.approx(enumerated)


def test_no_discordant_item_is_no_evidence():
    assert binary.mcnemar(np.zeros(5)).p_exact == 1
    with pytest.raises(ValueError, match="integers"):
        binary.mcnemar(np.array([0.5]))


def test_paired_counts():
    counts = PairedCounts.of(np.array([1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 0]))
    assert counts == PairedCounts(both=1, only_a=2, only_b=1, neither=1)
    assert counts.effective(2).n() == 2.5
    assert counts.effective(float("nan")) == counts.effective(0.5) == counts
    with pytest.raises(ValueError, match="0 or 1"):
        PairedCounts.of(np.array([0.5]), np.array([1]))


def test_newcombe_is_that_of_his_paper_and_of_evalstats():
    # Newcombe (1998), Table II: 36, 12, 2, 0
    result = binary.newcombe(PairedCounts(36, 12, 2, 0))
    np.testing.assert_allclose(result, (0.0569, 0.3404), atol=5e-5)
    rng = np.random.default_rng(2)
    for _ in range(50):
        a = rng.random(60) < rng.random()
        b = a ^ (rng.random(60) < rng.random() * 0.5)
        theirs = newcombe_mover_paired_ci(a.astype(float), b.astype(float))
        ours = binary.newcombe(PairedCounts.of(a.astype(int), b.astype(int)))
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_newcombe_covers_its_truth():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(1500):
        cells = rng.multinomial(300, [0.5, 0.05, 0.03, 0.42])
        low, high = binary.newcombe(PairedCounts(*map(float, cells)))
        hits += low <= 0.02 <= high
    assert 0.935 <= hits / 1500 <= 0.97
