"""The difference of two runs on the same tokens or items, by document or item group.

Every difference is A minus B, first inside each token or item: what both runs share (a hard
word, a long document) cancels before anything is summed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from imatrix_lab.stats import clustered, resample, sign_flips
from imatrix_lab.stats.clustered import Interval

FEW_CLUSTERS = 12
"""Below this, a comparison says how few there are."""


@dataclass(frozen=True)
class Sums:
    """Sums by cluster: all that inference on a mean needs.

    `totals`, `sizes`, `squares`: (G,), sum of values, number of values, sum of squared values.
    """

    totals: np.ndarray
    sizes: np.ndarray
    squares: np.ndarray

    @staticmethod
    def of_finite(values: np.ndarray, codes: np.ndarray, n_clusters: int) -> Sums:
        """Sum the finite ones of `values` by cluster; see `of`."""
        finite = np.isfinite(values)
        return Sums.of(values[finite], codes[finite], n_clusters)

    @staticmethod
    def of(values: np.ndarray, codes: np.ndarray, n_clusters: int) -> Sums:
        """Sum `values` (n,) by cluster; `codes` (n,) are integers below `n_clusters`.

        Clusters without values are kept, with size 0, so that runs stay aligned.

        Raises ValueError: a value that is not finite.
        """
        values = np.asarray(values, np.float64)
        if not np.isfinite(values).all():
            raise ValueError("values must be finite: exclude others in pairs and count them")
        return Sums(
            np.bincount(codes, values, n_clusters),
            np.bincount(codes, minlength=n_clusters).astype(np.float64),
            np.bincount(codes, values**2, n_clusters),
        )

    def n(self) -> int:
        """Return the number of values."""
        return int(self.sizes.sum())

    def variance(self) -> float:
        """Return the variance of single values, clusters ignored."""
        n = self.sizes.sum()
        spread = float(self.squares.sum() / n - (self.totals.sum() / n) ** 2)
        return max(spread, 0.0)

    def design_effect(self, std_error: float) -> float:
        """Return the cluster-robust variance over that of independent values; NaN if 0/0."""
        naive = self.variance() / self.sizes.sum()
        return float(std_error**2 / naive) if naive > 0 else float("nan")

    def intra_cluster_correlation(self) -> float:
        """Return the ANOVA estimate of the correlation of two values of one cluster.

        (MSB - MSW) / (MSB + (m0 - 1) MSW), m0 = (N - Σ n²/N) / (G - 1); Donner & Koval (1980,
        Biometrics 36:19). NaN where nothing varies or every cluster has one value.
        """
        kept = self.sizes > 0
        totals, sizes, n = self.totals[kept], self.sizes[kept], self.sizes.sum()
        n_clusters = len(sizes)
        if n_clusters < 2 or n <= n_clusters:
            return float("nan")
        between = np.sum(totals**2 / sizes) - totals.sum() ** 2 / n
        within = self.squares.sum() - np.sum(totals**2 / sizes)
        msb, msw = between / (n_clusters - 1), max(within, 0.0) / (n - n_clusters)
        m0 = (n - np.sum(sizes**2) / n) / (n_clusters - 1)
        whole = msb + (m0 - 1) * msw
        return float((msb - msw) / whole) if whole > 0 else float("nan")


@dataclass(frozen=True)
class PairedMean:
    """The mean difference of two runs.

    Attributes
    ----------
    interval : estimate with CR3 standard error; its ends are those of `method`.
    p_value : two-sided.
    exact : the permutation went through all patterns.
    method : of ends and p_value: "permutation" or "stationary bootstrap".
    design_effect : variance over that of independent tokens or items.
    largest_share : of all values, in the largest cluster.
    """

    interval: Interval
    p_value: float
    exact: bool
    method: str
    design_effect: float
    largest_share: float


def mean_difference(sums: Sums, level: float = 0.95) -> PairedMean:
    """Return the mean of paired differences, A minus B, with interval and test.

    The estimate is Σ differences / Σ values, with the CR3 standard error of `clustered.mean`; p and
    interval are those of `sign_flips`, which swap the two runs' names for whole clusters: right,
    whatever the lengths of the clusters, where swapping changes nothing under the null (two runs
    that differ in nothing that matters).

    Do not use with one cluster: see `one_document`.

    Raises ValueError: no values, or fewer than two clusters that have any.
    """
    totals, sizes = clustered.checked(sums.totals, sums.sizes)
    if len(sizes) < 2:
        raise ValueError("one cluster: use one_document with its windows")
    interval = clustered.mean(totals, sizes, level)
    p, exact = sign_flips.p_value(totals)
    low, high = sign_flips.interval(totals, sizes, level)
    if p > 1 - level:  # of whole numbers many flips are ties, and the interval is of the mid-p
        low, high = min(low, 0.0), max(high, 0.0)
    return PairedMean(
        interval=replace(interval, low=low, high=high),
        p_value=p,
        exact=exact,
        method="permutation",
        design_effect=sums.design_effect(interval.std_error),
        largest_share=float(sizes.max() / sizes.sum()),
    )


def t_test(interval: Interval) -> float:
    """Return the two-sided p that the mean is 0; 1 or 0 where nothing varies."""
    if interval.std_error == 0:
        return 1.0 if interval.estimate == 0 else 0.0
    return float(2 * special.stdtr(interval.df, -abs(interval.estimate) / interval.std_error))


def one_document(
    totals: np.ndarray,
    sizes: np.ndarray,
    rng: np.random.Generator,
    n_resamples: int = 10_000,
    level: float = 0.95,
) -> PairedMean:
    """Return the mean difference where the text is one long document.

    Stationary bootstrap of Politis & Romano (1994, JASA 89:1303) over the document's windows, in
    their order, with the block length of Politis & White (2004; corrected 2009). The p value is
    the share of centred replicates as far from 0 as the estimate. It holds for text like this
    document and no other: nothing here measures how documents differ.

    `totals`, `sizes`: (windows,), sums and counts of A minus B, in the order of the text.

    Raises ValueError: fewer than 20 windows.
    """
    from arch.bootstrap import StationaryBootstrap, optimal_block_length

    totals, sizes = clustered.checked(totals, sizes)
    n_windows = len(sizes)
    if n_windows < 20:
        raise ValueError(f"one document of {n_windows} windows: 20 needed to resample them")
    estimate = float(totals.sum() / sizes.sum())
    residual = totals - estimate * sizes
    block = 1.0
    if np.ptp(residual) > 0:
        block = float(np.clip(optimal_block_length(residual)["stationary"].iloc[0], 1, 1e9))
    n_blocks = max(n_windows / block, 2.0)
    drawn = StationaryBootstrap(block, totals, sizes, seed=rng)
    replicates = drawn.apply(lambda t, s: t.sum() / s.sum(), n_resamples).ravel()
    std_error = float(np.std(replicates)) * (n_blocks / (n_blocks - 1)) ** 0.5
    tail = resample.tail_share(replicates, std_error, n_blocks - 1, level)
    low, high = (float(x) for x in np.quantile(replicates, (tail, 1 - tail)))
    hits = np.count_nonzero(np.abs(replicates - estimate) >= abs(estimate))
    p = (1 + hits) / (1 + n_resamples)
    naive = float(np.sum(residual**2)) / sizes.sum() ** 2
    return PairedMean(
        interval=Interval(estimate, std_error, low, high, int(sizes.sum()), 1, n_blocks - 1, level),
        p_value=p,
        exact=False,
        method="stationary bootstrap",
        design_effect=std_error**2 / naive if naive > 0 else float("nan"),
        largest_share=1.0,
    )
