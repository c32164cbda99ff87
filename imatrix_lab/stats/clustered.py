"""Means of values that come in clusters, such as the tokens of documents."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from imatrix_lab.stats import binary, resample


@dataclass(frozen=True)
class Interval:
    """An estimate with its uncertainty.

    Attributes
    ----------
    low, high : ends of the interval of `level`; NaN with fewer than two clusters.
    n, n_clusters : values (tokens, items) and clusters (documents, item groups) behind it.
    df : degrees of freedom of t.
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


def satterthwaite(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the root of a sum of variances, and its degrees of freedom.

    Satterthwaite (1946, Biometrics Bulletin 2:110). `parts`: variances with their own.
    """
    variance = sum(v for v, _ in parts)
    if not variance:
        return 0.0, parts[0][1]
    return float(variance**0.5), variance**2 / sum(v**2 / df for v, df in parts)


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

    Assumes that clusters are independent draws; nothing about the values within one. With
    clusters of very unequal size the interval is too narrow (93 % with documents of lognormal
    length); for the paired differences of two runs there is `sign_flips.interval`.

    Parameters
    ----------
    totals : (G,), sum of the values of each cluster.
    sizes : (G,), number of values of each; clusters of size 0 are left out.

    Raises ValueError: different shapes, no values, or something not finite.
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
    """Return the mean of values between 0 and 1, with an interval inside 0 to 1.

    Mean and standard error are those of `mean`; the interval is Wilson's, of as many independent
    values as these are worth by their variance and the t quantile (Korn & Graubard 1998, Survey
    Methodology 24:193; Franco et al. 2019, J. Survey Statistics and Methodology 7:334). Where all
    values are alike a cluster is worth one.
    """
    t = mean(totals, sizes, level)
    if t.n_clusters < 2:
        return t
    tail = (1 + level) / 2
    worth = float(t.n_clusters)
    if t.std_error > 0:
        worth = t.estimate * (1 - t.estimate) / t.std_error**2
    worth *= float(special.ndtri(tail) / special.stdtrit(t.df, tail)) ** 2
    low, high = binary.wilson(t.estimate * worth, worth, level)
    return replace(t, low=max(0.0, min(low, t.estimate)), high=min(1.0, max(high, t.estimate)))


def checked(totals: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 without empty clusters; raise as `mean` does."""
    totals, sizes = np.asarray(totals, np.float64), np.asarray(sizes, np.float64)
    if totals.shape != sizes.shape or totals.ndim != 1:
        raise ValueError(f"totals {totals.shape} and sizes {sizes.shape} do not go together")
    if not (np.isfinite(totals).all() and np.isfinite(sizes).all() and (sizes >= 0).all()):
        raise ValueError("totals and sizes must be finite: exclude other values and count them")
    kept = sizes > 0
    if not kept.any():
        raise ValueError("no values")
    return totals[kept], sizes[kept]
