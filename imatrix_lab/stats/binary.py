"""Right or wrong on the same items: McNemar's exact test, Wilson's and Newcombe's intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PairedCounts:
    """How many items both systems got right, only one of them, or neither.

    The counts may be fractions of effective items; see `effective`.
    """

    both: float
    only_a: float
    only_b: float
    neither: float

    @staticmethod
    def of(a: np.ndarray, b: np.ndarray) -> PairedCounts:
        """Count `a` and `b`, (n,) of 0 and 1.

        Raises ValueError: other values, or different lengths.
        """
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
            raise ValueError("need two arrays of the same length, all values 0 or 1")
        cells = np.bincount((2 * a + b).astype(int), minlength=4).tolist()
        return PairedCounts(both=cells[3], only_a=cells[2], only_b=cells[1], neither=cells[0])

    def n(self) -> float:
        """Return the number of items."""
        return self.both + self.only_a + self.only_b + self.neither

    def effective(self, design_effect: float) -> PairedCounts:
        """Return the counts of as many independent items as these clustered ones are worth."""
        by = 1.0 if math.isnan(design_effect) else max(design_effect, 1.0)
        return PairedCounts(self.both / by, self.only_a / by, self.only_b / by, self.neither / by)


@dataclass(frozen=True)
class McNemar:
    """Test of "A and B are equally good".

    Attributes
    ----------
    p_exact : two-sided, P(|net wins| >= those observed).
    wins_a, wins_b : net wins of each, summed over the clusters it won.
    n_clusters : clusters in which the two differ at all.
    """

    p_exact: float
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

    Raises ValueError: not integers.
    """
    from scipy import stats

    net = np.rint(differences).astype(int)
    if not np.array_equal(net, differences):
        raise ValueError("net differences of right and wrong are integers")
    sizes, counts = np.unique(np.abs(net[net != 0]), return_counts=True)
    law = np.ones(1)  # of (total + largest total) / 2
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        tosses = np.zeros(count * size + 1)
        tosses[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        law = np.convolve(law, tosses)
    distance = np.abs(2 * np.arange(len(law)) - int(np.sum(sizes * counts)))
    return McNemar(
        p_exact=min(1.0, float(law[distance >= abs(int(net.sum()))].sum())),
        wins_a=int(net[net > 0].sum()),
        wins_b=int(-net[net < 0].sum()),
        n_clusters=int(counts.sum()),
    )


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share; `n` may be an effective number."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return float(low), float(high)


def newcombe(counts: PairedCounts, level: float = 0.95) -> tuple[float, float]:
    """Return Newcombe's interval of the difference of two paired shares.

    Method 10 of Newcombe (1998, Statistics in Medicine 17:2635): Wilson's interval of each share,
    joined through their correlation, with his continuity correction of it. Assumes independent
    items; pass `PairedCounts.effective` where they are clustered.
    """
    n = counts.n()
    right_a, right_b = counts.both + counts.only_a, counts.both + counts.only_b
    low_a, high_a = wilson(right_a, n, level)
    low_b, high_b = wilson(right_b, n, level)
    share_a, share_b = right_a / n, right_b / n
    product = right_a * (n - right_a) * right_b * (n - right_b)
    phi = 0.0
    if product > 0:
        cross = counts.both * counts.neither - counts.only_a * counts.only_b
        phi = (max(cross - n / 2, 0.0) if cross > 0 else cross) / product**0.5

    def length(x: float, y: float) -> float:
        return float(max(x**2 - 2 * phi * x * y + y**2, 0.0) ** 0.5)

    difference = share_a - share_b
    return (
        difference - length(share_a - low_a, high_b - share_b),
        difference + length(high_a - share_a, share_b - low_b),
    )
