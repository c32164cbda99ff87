"""Right and wrong on the same items: R, statsmodels, evalstats, published values."""

import numpy as np
import pytest
from evalstats.core.resampling import newcombe_mover_paired_ci
from statsmodels.stats.contingency_tables import StratifiedTable
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from imatrix_lab.stats import binary, paired
from imatrix_lab.stats.binary import Table


@pytest.mark.parametrize(
    ("wins", "losses", "exact", "mid"),
    [
        # R 4.2.2: binom.test(b, n)$p.value; 2*pbinom(min(b, c), n, .5) - dbinom(min(b, c), n, .5)
        (12, 4, 0.0768127441406, 0.0490417480469),
        (61, 42, 0.0756191075863, 0.0619263798786),
    ],
)
def test_mcnemar_is_that_of_r_and_statsmodels(wins, losses, exact, mid):
    differences = np.repeat([1, -1, 0], [wins, losses, 50])
    found = binary.mcnemar(differences)
    assert found.p_exact == pytest.approx(exact, rel=1e-10)
    assert found.p_mid == pytest.approx(mid, rel=1e-10)
    assert (found.wins_a, found.wins_b, found.n_clusters) == (wins, losses, wins + losses)
    theirs = statsmodels_mcnemar([[50, wins], [losses, 0]], exact=True)
    assert found.p_exact == pytest.approx(theirs.pvalue)


def test_clustered_mcnemar_is_the_permutation_of_clusters():
    rng = np.random.default_rng(1)
    differences = rng.integers(-4, 6, 12)
    found = binary.mcnemar(differences)
    enumerated, exact = paired.sign_flip(differences.astype(float), rng, 2**12)
    assert exact
    assert found.p_exact == pytest.approx(enumerated)
    assert found.p_mid < found.p_exact


def test_no_discordant_item_is_no_evidence():
    found = binary.mcnemar(np.zeros(5))
    assert (found.p_exact, found.p_mid) == (1, 0.5)
    with pytest.raises(ValueError, match="integers"):
        binary.mcnemar(np.array([0.5]))


def test_table_counts():
    table = Table.of(np.array([1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 0]))
    assert table == Table(both=1, only_a=2, only_b=1, neither=1)
    assert table.difference() == pytest.approx(0.2)
    assert table.discordance() == pytest.approx(0.6)
    assert table.effective(2).n() == 2.5
    assert table.effective(float("nan")) == table.effective(0.5) == table
    with pytest.raises(ValueError, match="0 and 1"):
        Table.of(np.array([0.5]), np.array([1]))


def test_newcombe_is_that_of_his_paper_and_of_evalstats():
    # Newcombe (1998), Table II: 36, 12, 2, 0
    found = binary.newcombe(Table(36, 12, 2, 0))
    np.testing.assert_allclose(found, (0.0569, 0.3404), atol=5e-5)
    rng = np.random.default_rng(2)
    for _ in range(50):
        a = rng.random(60) < rng.random()
        b = a ^ (rng.random(60) < rng.random() * 0.5)
        theirs = newcombe_mover_paired_ci(a.astype(float), b.astype(float))
        ours = binary.newcombe(Table.of(a.astype(int), b.astype(int)))
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_newcombe_covers_its_truth():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(1500):
        cells = rng.multinomial(300, [0.5, 0.05, 0.03, 0.42])
        low, high = binary.newcombe(Table(*map(float, cells)))
        hits += low <= 0.02 <= high
    assert 0.935 <= hits / 1500 <= 0.97


def test_mantel_haenszel_is_that_of_r_and_statsmodels():
    tables = [Table(20, 9, 2, 11), Table(10, 5, 3, 10)]
    found = binary.stratified(tables)
    # R 4.2.2: mantelhaen.test(2x2x70, one stratum a pair, correct=FALSE); exact=TRUE for the ends
    assert found.p_value == pytest.approx(0.038947455742, rel=1e-9)
    assert found.odds_ratio == pytest.approx(2.8)
    np.testing.assert_allclose(
        (found.odds_low, found.odds_high), (0.953017522996, 9.931277592190), rtol=3e-4
    )
    pair = {"both": [[1, 0], [1, 0]], "a": [[1, 0], [0, 1]], "b": [[0, 1], [1, 0]],
            "none": [[0, 1], [0, 1]]}  # fmt: skip
    strata = [pair["both"]] * 30 + [pair["a"]] * 14 + [pair["b"]] * 5 + [pair["none"]] * 21
    theirs = StratifiedTable([np.array(s) for s in strata])
    assert found.odds_ratio == pytest.approx(theirs.oddsratio_pooled)
    assert found.p_value == pytest.approx(theirs.test_null_odds().pvalue)


def test_tasks_are_weighed_by_items_and_alike():
    found = binary.stratified([Table(0, 10, 0, 90), Table(0, 0, 10, 10)])
    assert found.difference == pytest.approx(0)
    assert found.macro_difference == pytest.approx((0.1 - 0.5) / 2)
    assert found.p_value == 1
    assert found.p_heterogeneity < 1e-4
    alone = binary.stratified([Table(1, 0, 0, 1)])
    assert alone.p_value == 1
    assert np.isnan(alone.odds_ratio)
    with pytest.raises(ValueError, match="no tasks"):
        binary.stratified([])


def test_posterior_has_the_moments_of_the_dirichlet():
    table = Table(40, 9, 3, 28)
    found = binary.posterior(table, np.random.default_rng(4), margin=0.1)
    cells = np.array([40.5, 9.5, 3.5, 28.5])
    mean = (cells[1] - cells[2]) / cells.sum()
    sd = np.sqrt(((cells[1] + cells[2]) / cells.sum() - mean**2) / (cells.sum() + 1))
    assert found.mean == pytest.approx(mean)
    np.testing.assert_allclose(
        (found.low, found.high), mean + np.array([-1.96, 1.96]) * sd, atol=0.01
    )
    assert found.p_a_better == pytest.approx(0.96, abs=0.02)
    assert 0 < found.p_within_margin < 1
    mirrored = binary.posterior(Table(40, 3, 9, 28), np.random.default_rng(4))
    assert mirrored.p_a_better == pytest.approx(1 - found.p_a_better, abs=0.01)
    assert np.isnan(mirrored.p_within_margin)
