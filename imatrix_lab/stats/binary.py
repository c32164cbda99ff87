"""Right or wrong on the same items: exact tests, intervals, strata, and a Bayesian estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Table:
    """Two systems on the same items.

    Attributes
    ----------
    both, only_a, only_b, neither : how many items each got right; may be fractions of effective
        items (see `effective`).
    """

    both: float
    only_a: float
    only_b: float
    neither: float

    @staticmethod
    def of(a: np.ndarray, b: np.ndarray) -> Table:
        """Count `a` and `b`, (n,) of 0 and 1.

        Raises
        ------
        ValueError : other values, or different lengths.
        """
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
            raise ValueError("two equally long rows of 0 and 1 are needed")
        cells = np.bincount((2 * a + b).astype(int), minlength=4).tolist()
        return Table(both=cells[3], only_a=cells[2], only_b=cells[1], neither=cells[0])

    def n(self) -> float:
        """Return the number of items."""
        return self.both + self.only_a + self.only_b + self.neither

    def difference(self) -> float:
        """Return the share right of A minus that of B."""
        return (self.only_a - self.only_b) / self.n()

    def discordance(self) -> float:
        """Return the share of items that one got right and the other did not."""
        return (self.only_a + self.only_b) / self.n()

    def effective(self, design_effect: float) -> Table:
        """Return the table of as many independent items as these clustered ones are worth."""
        by = 1.0 if math.isnan(design_effect) else max(design_effect, 1.0)
        return Table(self.both / by, self.only_a / by, self.only_b / by, self.neither / by)


@dataclass(frozen=True)
class McNemar:
    """Two-sided p that A and B are equally good.

    Attributes
    ----------
    p_exact : P(|net wins| >= those seen); never too small.
    p_mid : with half the probability of those seen; closer to its level (Fagerland, Lydersen &
        Laake 2013, BMC Med Res Methodol 13:91).
    n_clusters : clusters in which the two differ at all.
    """

    p_exact: float
    p_mid: float
    wins_a: int
    wins_b: int
    n_clusters: int


def mcnemar(differences: np.ndarray) -> McNemar:
    """Return McNemar's test, exact also where items come in clusters.

    Given the size of each cluster's net difference, its sign is a coin toss under the null, so
    the total has a known distribution, a product of two-point ones, computed here by convolution.
    Where every cluster has one item this is McNemar's exact test (1947): Binomial(b + c, 1/2).

    Assumes independent clusters and a null under which swapping the systems changes nothing.

    Parameters
    ----------
    differences : (G,), items of the cluster only A got right less those only B did; integers.

    Raises
    ------
    ValueError : not integers.
    """
    rounded = np.rint(differences).astype(int)
    if not np.array_equal(rounded, differences):
        raise ValueError("net differences of right and wrong are integers")
    sizes, counts = np.unique(np.abs(rounded[rounded != 0]), return_counts=True)
    law = np.ones(1)  # of (total + largest total) / 2
    for size, count in zip(sizes, counts, strict=True):
        law = np.convolve(law, _coin_tosses(int(count), int(size)))
    total, largest = int(rounded.sum()), int(np.sum(sizes * counts))
    distance = np.abs(2 * np.arange(len(law)) - largest)
    beyond = float(law[distance > abs(total)].sum())
    seen = float(law[distance == abs(total)].sum())
    return McNemar(
        p_exact=min(1.0, beyond + seen),
        p_mid=min(1.0, beyond + seen / 2),
        wins_a=int(rounded[rounded > 0].sum()),
        wins_b=int(-rounded[rounded < 0].sum()),
        n_clusters=int(counts.sum()),
    )


def _coin_tosses(n: int, step: int) -> np.ndarray:
    """Return the law of `step` times Binomial(n, 1/2), (n·step + 1,)."""
    from scipy import stats

    law = np.zeros(n * step + 1)
    law[::step] = stats.binom.pmf(np.arange(n + 1), n, 0.5)
    return law


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share; `n` may be an effective number."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return float(low), float(high)


def newcombe(table: Table, level: float = 0.95) -> tuple[float, float]:
    """Return Newcombe's interval of the difference of two paired shares.

    Method 10 of Newcombe (1998, Statistics in Medicine 17:2635): Wilson's interval of each share,
    joined through their correlation, with his continuity correction of it. Assumes independent
    items; hand in `Table.effective` where they are clustered.
    """
    n = table.n()
    right_a, right_b = table.both + table.only_a, table.both + table.only_b
    low_a, high_a = wilson(right_a, n, level)
    low_b, high_b = wilson(right_b, n, level)
    share_a, share_b = right_a / n, right_b / n
    product = right_a * (n - right_a) * right_b * (n - right_b)
    phi = 0.0
    if product > 0:
        cross = table.both * table.neither - table.only_a * table.only_b
        phi = (max(cross - n / 2, 0.0) if cross > 0 else cross) / product**0.5

    def length(x: float, y: float) -> float:
        return float(max(x**2 - 2 * phi * x * y + y**2, 0.0) ** 0.5)

    difference = share_a - share_b
    return (
        difference - length(share_a - low_a, high_b - share_b),
        difference + length(high_a - share_a, share_b - low_b),
    )


@dataclass(frozen=True)
class Stratified:
    """Paired results pooled over tasks.

    Attributes
    ----------
    difference : share right of A minus B over all items (Mantel-Haenszel weights).
    macro_difference : the same, every task counting alike.
    odds_ratio, odds_low, odds_high : Mantel-Haenszel common odds ratio; an exact interval.
    p_value : of the Mantel-Haenszel test without continuity correction.
    p_heterogeneity : that A's share of the wins is the same in every task; NaN for one task.
    """

    difference: float
    macro_difference: float
    odds_ratio: float
    odds_low: float
    odds_high: float
    p_value: float
    p_heterogeneity: float


def stratified(tables: list[Table], level: float = 0.95) -> Stratified:
    """Return results of several tasks, pooled.

    With each pair of answers a stratum of its own, the Mantel-Haenszel test is (b - c)² / (b + c)
    and the common odds ratio b / c, b and c summed over tasks: stratifying by task is implied.
    The interval is Clopper and Pearson's of b / (b + c), carried over. Heterogeneity: chi-squared
    of the tasks' (b, c). Assumes independent items: see `Table.effective`.

    Raises
    ------
    ValueError : no tables.
    """
    from scipy import stats
    from statsmodels.stats.proportion import proportion_confint

    if not tables:
        raise ValueError("no tasks")
    b = np.array([t.only_a for t in tables], float)
    c = np.array([t.only_b for t in tables], float)
    n = sum(t.n() for t in tables)
    wins, losses = float(b.sum()), float(c.sum())
    discordant = wins + losses
    macro = float(np.mean([t.difference() for t in tables]))
    if discordant == 0:
        nan = float("nan")
        return Stratified(0.0, macro, nan, 0.0, float("inf"), 1.0, nan)
    low, high = proportion_confint(wins, discordant, alpha=1 - level, method="beta")
    share = wins / discordant
    seen = (b + c) > 0
    expected = (b + c)[seen] * share
    p_heterogeneity = float("nan")
    if 0 < share < 1 and seen.sum() > 1:
        chi2 = float(np.sum((b[seen] - expected) ** 2 / (expected * (1 - share))))
        p_heterogeneity = float(stats.chi2.sf(chi2, int(seen.sum()) - 1))
    return Stratified(
        difference=(wins - losses) / n,
        macro_difference=macro,
        odds_ratio=wins / losses if losses else float("inf"),
        odds_low=float(low / (1 - low)),
        odds_high=float(high / (1 - high)) if high < 1 else float("inf"),
        p_value=float(stats.chi2.sf((wins - losses) ** 2 / discordant, 1)),
        p_heterogeneity=p_heterogeneity,
    )


@dataclass(frozen=True)
class Posterior:
    """What the paired table makes believable about the difference of shares, A minus B.

    Attributes
    ----------
    low, high : credible interval.
    p_a_better : posterior probability that A is right more often.
    p_within_margin : that the difference is smaller than the margin; NaN without one.
    """

    mean: float
    low: float
    high: float
    p_a_better: float
    p_within_margin: float


def posterior(
    table: Table,
    rng: np.random.Generator,
    margin: float | None = None,
    level: float = 0.95,
    n_draws: int = 50_000,
) -> Posterior:
    """Return the posterior of the difference with a Dirichlet(1/2, 1/2, 1/2, 1/2) prior.

    Jeffreys' prior of the multinomial on the four cells of the paired table (Agresti & Hitchcock
    2005 review it). Assumes independent items: see `Table.effective`.
    """
    cells = np.array([table.both, table.only_a, table.only_b, table.neither]) + 0.5
    shares = rng.dirichlet(cells, n_draws)
    drawn = shares[:, 1] - shares[:, 2]
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return Posterior(
        mean=float((cells[1] - cells[2]) / cells.sum()),
        low=float(low),
        high=float(high),
        p_a_better=float(np.mean(drawn > 0)),
        p_within_margin=float("nan") if margin is None else float(np.mean(np.abs(drawn) < margin)),
    )
