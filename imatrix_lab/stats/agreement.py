"""Agreement: of people among themselves, and of a judge with people."""

from dataclasses import dataclass

import numpy as np

from imatrix_lab.stats import clustered, resample
from imatrix_lab.stats.preference import RATERS_MIN


def krippendorff_alpha(units: np.ndarray, values: np.ndarray) -> float:
    """Return Krippendorff's alpha for interval data: 1 is agreement, 0 what chance gives.

    1 - observed / expected disagreement, squared differences over pairs of votes on one unit and
    over all pairs (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability). Units with one
    vote are left out; NaN where nothing is left, or all votes are equal.

    `units` (n,) are codes from 0; `values` (n,) the votes.
    """
    values = np.asarray(values, np.float64)
    n = np.bincount(units)
    kept = n[units] > 1
    units, values = units[kept], values[kept]
    if not len(values):
        return float("nan")
    n, sums, squares = (np.bincount(units, w) for w in (np.ones(len(values)), values, values**2))
    used = n > 1
    observed = np.sum((n[used] * squares[used] - sums[used] ** 2) / (n[used] - 1))
    total = float(len(values))
    expected = (total * np.sum(values**2) - np.sum(values) ** 2) / (total - 1)
    return float(1 - observed / expected) if expected > 0 else float("nan")


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa with an interval: 1 is agreement, 0 what chance gives; NaN if undefined."""

    estimate: float
    std_error: float
    low: float
    high: float
    n: int


def cohen_kappa(
    x: np.ndarray, y: np.ndarray, clusters: np.ndarray, raters: np.ndarray, level: float = 0.95
) -> Kappa:
    """Return Cohen's kappa (1960) of two classifications, codes from 0, in clustered pairs.

    The variances of the jackknife over clusters and over raters add, as in
    `preference.mean_preference`; with fewer than `RATERS_MIN` raters it holds for these alone.

    `x`, `y` (n,): e.g. a person's votes, and a judge's on the same; `clusters` and `raters` (n,)
    are codes from 0.
    """
    k = int(max(x.max(), y.max())) + 1 if len(x) else 1
    by_cluster, by_rater = (_tables(x, y, codes, k) for codes in (clusters, raters))
    estimate = float(_kappa(by_cluster.sum(axis=0)))
    tables = [by_cluster] if len(by_rater) < RATERS_MIN else [by_cluster, by_rater]
    if min(map(len, tables)) < 2 or np.isnan(estimate):
        return Kappa(estimate, np.nan, np.nan, np.nan, len(x))
    parts = []
    for each in tables:
        without = _kappa(each.sum(axis=0) - each)
        jackknife = resample.jackknife_error(without[~np.isnan(without)], estimate)
        parts.append((float(jackknife) ** 2, len(each) - 1.0))
    error, df = clustered.satterthwaite(parts)
    low, high = clustered.t_interval(estimate, error, df, level)
    return Kappa(estimate, error, max(low, -1.0), min(high, 1.0), len(x))


def kappa_among(x: np.ndarray, units: np.ndarray) -> float:
    """Return kappa of all pairs of votes on one unit: what a judge like these people would have.

    `x`, `units` (n,): codes from 0.
    """
    if not len(x):
        return float("nan")
    counts = np.zeros((int(units.max()) + 1, int(x.max()) + 1))
    np.add.at(counts, (units, x), 1)
    return float(_kappa(counts.T @ counts - np.diag(counts.sum(axis=0))))


def _tables(x: np.ndarray, y: np.ndarray, codes: np.ndarray, k: int) -> np.ndarray:
    """Return the table of x and y of each code that occurs, (g, k, k)."""
    present, places = np.unique(codes, return_inverse=True)
    tables = np.zeros((len(present), k, k))
    np.add.at(tables, (places, x, y), 1)
    return tables


def _kappa(tables: np.ndarray) -> np.ndarray:
    """Return kappa of tables, (…, k, k); NaN where chance alone agrees, or nothing is counted."""
    n = tables.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(tables, axis1=-2, axis2=-1) / n
        chance = np.sum(tables.sum(axis=-1) * tables.sum(axis=-2), axis=-1) / n**2
        return np.asarray(np.where(chance < 1, (observed - chance) / (1 - chance), np.nan))
