"""Means and quantiles of values that come in clusters, such as the tokens of documents."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from imatrix_lab.stats import binary, resample

_THRESHOLDS = 128  # where bootstrap distribution functions are looked at: steps of SE/10
_REACH = 6.0  # how far around the estimate, in standard errors


@dataclass(frozen=True)
class Interval:
    """An estimate with its uncertainty.

    Attributes
    ----------
    low, high : ends of the interval of `level`; NaN with fewer than two clusters.
    n, n_clusters : values (tokens, items) and clusters (documents, item groups) behind it.
    df : degrees of freedom of the t distribution used.
    """

    estimate: float
    std_error: float
    low: float
    high: float
    n: int
    n_clusters: int
    df: float
    level: float = 0.95


def t_interval(estimate: float, std_error: float, df: float, level: float) -> tuple[float, float]:
    """Return estimate ± t(df) · std_error; NaN without degrees of freedom."""
    if not df > 0:
        return float("nan"), float("nan")
    half = float(special.stdtrit(df, (1 + level) / 2)) * std_error
    return estimate - half, estimate + half


def jackknife(totals: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the ratio mean without each cluster, (G,); NaN where nothing is left."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((totals.sum() - totals) / (sizes.sum() - sizes))


def mean(totals: np.ndarray, sizes: np.ndarray, level: float = 0.95) -> Interval:
    """Return the mean over all values, with a CR3 cluster-robust t interval.

    The mean is sum(totals) / sum(sizes): a long document counts by its tokens. Its variance is
    the cluster jackknife CV3 = (G-1)/G · Σ_g (mean without g - mean)², referred to t with G-1
    degrees of freedom (Bell & McCaffrey 2002; MacKinnon, Nielsen & Webb 2023, J. Econometrics
    232:272). With clusters of one size this is the ordinary t interval of cluster means.

    Assumes that clusters are independent draws; nothing about the values within one. Not to be
    used with a handful of clusters and skewed values (use `resample.flipped_sums`), nor when one
    cluster holds most values.

    Parameters
    ----------
    totals : (G,), sum of the values of each cluster.
    sizes : (G,), number of values of each; clusters of size 0 are left out.

    Raises
    ------
    ValueError : different shapes, no values, or something not finite.
    """

    totals, sizes = checked(totals, sizes)
    n_clusters = len(sizes)
    estimate = float(totals.sum() / sizes.sum())
    std_error = float("nan")
    if n_clusters > 1:
        std_error = float(resample.jackknife_error(jackknife(totals, sizes), estimate))
    df = n_clusters - 1
    low, high = t_interval(estimate, std_error, df, level)
    return Interval(estimate, std_error, low, high, int(sizes.sum()), n_clusters, df, level)


def share(totals: np.ndarray, sizes: np.ndarray, level: float = 0.95) -> Interval:
    """Return the mean over values between 0 and 1, with an interval that lies there too.

    Mean and standard error are those of `mean`; the interval is Wilson's, of as many independent
    values as these are worth by their variance and the t quantile (Korn & Graubard 1998, Survey
    Methodology 24:193; Franco et al. 2019, J. Survey Statistics and Methodology 7:334). Where all
    values are alike a cluster is worth one.

    Raises
    ------
    ValueError : see `mean`.
    """
    found = mean(totals, sizes, level)
    if found.n_clusters < 2:
        return found
    tail = (1 + level) / 2
    worth = float(found.n_clusters)
    if found.std_error > 0:
        worth = found.estimate * (1 - found.estimate) / found.std_error**2
    worth *= float(special.ndtri(tail) / special.stdtrit(found.df, tail)) ** 2
    low, high = binary.wilson(found.estimate * worth, worth, level)
    ends = max(0.0, min(low, found.estimate)), min(1.0, max(high, found.estimate))
    return replace(found, low=ends[0], high=ends[1])


def checked(totals: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 without empty clusters; see `mean` for what raises."""
    totals, sizes = np.asarray(totals, np.float64), np.asarray(sizes, np.float64)
    if totals.shape != sizes.shape or totals.ndim != 1:
        raise ValueError(f"totals {totals.shape} and sizes {sizes.shape} are not one pair of rows")
    if not (np.isfinite(totals).all() and np.isfinite(sizes).all() and (sizes >= 0).all()):
        raise ValueError("totals and sizes must be finite: exclude other values and count them")
    kept = sizes > 0
    if not kept.any():
        raise ValueError("no values")
    return totals[kept], sizes[kept]


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
    order statistics jump, which makes bootstrap intervals of tails too wide for differences and
    too narrow for levels. The interval is the expanded percentile one (see `resample.tail_share`)
    with the jackknife's standard error.

    Assumes independent clusters. Not to be used for quantiles so far out that fewer than about
    ten clusters have values beyond them: the interval is then too narrow.

    Parameters
    ----------
    values : (n,), finite.
    clusters : (n,), integers; equal means same cluster.
    q : between 0 and 1, neither of them.

    Raises
    ------
    ValueError : different shapes, no values, something not finite, or no quantile.
    """
    values, clusters = np.asarray(values), np.asarray(clusters)
    if values.shape != clusters.shape or values.ndim != 1 or not len(values):
        raise ValueError(f"values {values.shape} and clusters {clusters.shape} do not go together")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite: exclude others and count them")
    if not 0 < q < 1:
        raise ValueError(f"a quantile's share lies between 0 and 1: {q}")
    names, codes = np.unique(clusters, return_inverse=True)
    table = QuantileTable.of(values, codes, len(names), (q,))
    estimate, n_clusters = float(table.estimates[0]), len(names)
    std_error = low = high = float("nan")
    if n_clusters > 1:
        found = table.replicates(resample.bootstrap_sums(table.columns, n_resamples, rng))[:, 0]
        std_error, low, high = percentile(found, table.jackknife()[:, 0], estimate, level)
    return Interval(estimate, std_error, low, high, len(values), n_clusters, n_clusters - 1, level)


def percentile(
    replicates: np.ndarray, jackknife: np.ndarray, estimate: float, level: float
) -> tuple[float, float, float]:
    """Return standard error and ends of the expanded percentile interval.

    Parameters
    ----------
    replicates : (R,), the statistic on bootstrap samples.
    jackknife : (G,), the statistic without each cluster.
    """
    n_clusters = len(jackknife)
    std_error = max(
        float(resample.jackknife_error(jackknife, estimate)),
        float(np.std(replicates)) * (n_clusters / (n_clusters - 1)) ** 0.5,
    )
    tail = resample.tail_share(replicates, std_error, n_clusters - 1, level)
    low, high = np.quantile(replicates, (tail, 1 - tail))
    return std_error, float(low), float(high)


@dataclass(frozen=True)
class QuantileTable:
    """Counts per cluster at or below a few thresholds: all that resampling quantiles needs.

    Attributes
    ----------
    shares : the Q shares asked for.
    estimates : (Q,), the quantiles of the sample, as `quantile` has them.
    n : number of values.
    pieces : for each share, the mean of the values between one threshold and the next.
    columns : (G, 1 + Σ thresholds), sizes of the clusters, then counts ≤ each threshold.
    """

    shares: tuple[float, ...]
    estimates: np.ndarray
    n: int
    pieces: tuple[np.ndarray, ...]
    columns: np.ndarray

    @staticmethod
    def of(
        values: np.ndarray, codes: np.ndarray, n_clusters: int, shares: tuple[float, ...]
    ) -> QuantileTable:
        """Count; `codes` (n,) are integers below `n_clusters`."""
        order = np.argsort(values, kind="stable")
        ordered, owners = values[order].astype(np.float64), codes[order]
        n = len(values)
        sizes = np.bincount(codes, minlength=n_clusters).astype(np.float64)
        columns, pieces = [sizes[:, None]], []
        for q in shares:
            ranks = _ranks(q, owners, sizes)
            # the last of equal values stands for all of them
            cuts = np.unique(np.searchsorted(ordered, ordered[ranks], side="right"))
            piece = np.searchsorted(cuts, np.arange(cuts[-1]), side="right")
            counts = np.bincount(
                owners[: cuts[-1]] * len(cuts) + piece, minlength=n_clusters * len(cuts)
            )
            columns.append(counts.reshape(n_clusters, len(cuts)).cumsum(axis=1))
            starts = np.concatenate([[0], cuts[:-1]])
            pieces.append(np.add.reduceat(ordered[: cuts[-1]], starts) / (cuts - starts))
            pieces[-1][0] = ordered[cuts[0] - 1]  # not the mean of all that lies below
        # float32 counts exactly up to 2^24: twice as fast
        exact = np.float32 if n < 2**23 else np.float64
        joined = np.concatenate(columns, axis=1).astype(exact)
        table = QuantileTable(shares, np.empty(0), n, tuple(pieces), joined)
        return replace(table, estimates=table.replicates(joined.sum(axis=0)[None])[0])

    def replicates(self, sums: np.ndarray) -> np.ndarray:
        """Return the quantiles, (R, Q), for resampled column sums, (R, columns)."""
        found, at = [], 1
        for q, means in zip(self.shares, self.pieces, strict=True):
            half = (3 * q * (1 - q) / self.n) ** 0.5
            low, high = max(q - half, 0.0), min(q + half, 1.0)
            below = sums[:, at : at + len(means) - 1].astype(np.float64) / sums[:, :1]
            np.clip(below, low, high, out=below)
            # Σ mean · (share of the window in the piece), summed by parts
            whole = below @ (means[:-1] - means[1:]) + high * means[-1] - low * means[0]
            found.append(whole / (high - low))
            at += len(means)
        return np.stack(found, axis=1)

    def jackknife(self) -> np.ndarray:
        """Return the quantiles without each cluster, (G, Q)."""
        return self.replicates(self.columns.sum(axis=0) - self.columns)


def _ranks(q: float, owners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return ranks of thresholds around a quantile: as far as resampling moves it, and more."""
    n = len(owners)
    rank = min(max(int(np.ceil(q * n)) - 1, 0), n - 1)
    below = np.bincount(owners[: rank + 1], minlength=len(sizes)).astype(np.float64)
    reach = 2.0 * (3 * q * (1 - q) * n) ** 0.5 + _THRESHOLDS / 2
    if np.count_nonzero(sizes) > 1:
        reach += _REACH * mean(below, sizes).std_error * n
    ends = max(int(rank - reach), 0), min(int(rank + reach), n - 1)
    return np.unique(np.linspace(*ends, _THRESHOLDS).astype(int))
