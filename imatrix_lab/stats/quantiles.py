"""Quantiles of values that come in clusters, by bootstrap of clusters."""

from dataclasses import dataclass

import numpy as np

from imatrix_lab.stats import clustered, resample
from imatrix_lab.stats.clustered import Interval

_THRESHOLDS = 128  # where bootstrap distribution functions are evaluated: steps of SE/10
_REACH = 6.0  # how far around the estimate, in standard errors


def quantile(
    values: np.ndarray,
    clusters: np.ndarray,
    q: float,
    rng: np.random.Generator,
    n_resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Return a quantile over all values, with an interval by bootstrap of clusters.

    The estimate is the mean of the sample's quantiles in q ± sqrt(3 q (1-q) / n), a window of
    the standard deviation that Harrell & Davis' weights have (1982, Biometrika 69:635): single
    order statistics jump, which makes bootstrap intervals of tails too narrow. The interval is
    the expanded percentile one (see `resample.tail_share`) with the jackknife's standard error.

    Assumes independent clusters. Not to be used for quantiles so far out that fewer than about
    ten clusters have values beyond them: the interval is then too narrow.

    Parameters
    ----------
    values : (n,), finite.
    clusters : (n,), integers; equal means same cluster.
    q : between 0 and 1, neither of them.

    Raises ValueError: different shapes, no values, something not finite, or no quantile.
    """
    values, clusters = np.asarray(values), np.asarray(clusters)
    if values.shape != clusters.shape or values.ndim != 1 or not len(values):
        raise ValueError(f"values {values.shape} and clusters {clusters.shape} do not go together")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite: exclude others and count them")
    if not 0 < q < 1:
        raise ValueError(f"a quantile's share lies between 0 and 1: {q}")
    names, codes = np.unique(clusters, return_inverse=True)
    n_clusters = len(names)
    counts = _Counts.of(values, codes, n_clusters, q)
    estimate = float(counts.quantiles(counts.columns.sum(axis=0)[None])[0])
    std_error = low = high = float("nan")
    if n_clusters > 1:
        replicates = counts.quantiles(resample.bootstrap_sums(counts.columns, n_resamples, rng))
        jackknife = counts.quantiles(counts.columns.sum(axis=0) - counts.columns)
        std_error = max(
            float(resample.jackknife_error(jackknife, estimate)),
            float(np.std(replicates)) * (n_clusters / (n_clusters - 1)) ** 0.5,
        )
        tail = resample.tail_share(replicates, std_error, n_clusters - 1, level)
        low, high = (float(x) for x in np.quantile(replicates, (tail, 1 - tail)))
    return Interval(estimate, std_error, low, high, len(values), n_clusters, n_clusters - 1, level)


@dataclass(frozen=True)
class _Counts:
    """Counts per cluster at or below a few thresholds: all that resampling a quantile needs.

    Attributes
    ----------
    n : number of values.
    means : (T,), of the values between one threshold and the next.
    columns : (G, 1 + T), sizes of the clusters, then counts ≤ each threshold.
    """

    q: float
    n: int
    means: np.ndarray
    columns: np.ndarray

    @staticmethod
    def of(values: np.ndarray, codes: np.ndarray, n_clusters: int, q: float) -> "_Counts":
        order = np.argsort(values, kind="stable")
        ordered, owners = values[order].astype(np.float64), codes[order]
        sizes = np.bincount(codes, minlength=n_clusters).astype(np.float64)
        # the last of equal values stands for all of them
        cuts = np.unique(np.searchsorted(ordered, ordered[_ranks(q, owners, sizes)], side="right"))
        piece = np.searchsorted(cuts, np.arange(cuts[-1]), side="right")
        counts = np.bincount(
            owners[: cuts[-1]] * len(cuts) + piece, minlength=n_clusters * len(cuts)
        )
        starts = np.concatenate([[0], cuts[:-1]])
        means = np.add.reduceat(ordered[: cuts[-1]], starts) / (cuts - starts)
        means[0] = ordered[cuts[0] - 1]  # not the mean of all that lies below
        cumulated = counts.reshape(n_clusters, len(cuts)).cumsum(axis=1)
        columns = np.concatenate([sizes[:, None], cumulated], axis=1)
        # float32 counts exactly up to 2^24: twice as fast
        exact = np.float32 if len(values) < 2**23 else np.float64
        return _Counts(q, len(values), means, columns.astype(exact))

    def quantiles(self, sums: np.ndarray) -> np.ndarray:
        """Return the quantiles, (R,), for resampled column sums, (R, 1 + T)."""
        half = (3 * self.q * (1 - self.q) / self.n) ** 0.5
        low, high = max(self.q - half, 0.0), min(self.q + half, 1.0)
        below = sums[:, 1:-1].astype(np.float64) / sums[:, :1]
        np.clip(below, low, high, out=below)
        # Σ mean · (share of the window in the piece), summed by parts
        means = self.means
        total = below @ (means[:-1] - means[1:]) + high * means[-1] - low * means[0]
        return np.asarray(total / (high - low))


def _ranks(q: float, owners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return ranks of thresholds around a quantile: as far as resampling moves it, and more."""
    n = len(owners)
    rank = min(max(int(np.ceil(q * n)) - 1, 0), n - 1)
    below = np.bincount(owners[: rank + 1], minlength=len(sizes)).astype(np.float64)
    reach = 2.0 * (3 * q * (1 - q) * n) ** 0.5 + _THRESHOLDS / 2
    if np.count_nonzero(sizes) > 1:
        reach += _REACH * clustered.mean(below, sizes).std_error * n
    ends = max(int(rank - reach), 0), min(int(rank + reach), n - 1)
    return np.unique(np.linspace(*ends, _THRESHOLDS).astype(int))
