"""Resampling whole clusters: bootstrap sums, sign flips, and the intervals made of them.

Everything here works on sums per cluster, so its cost does not depend on how many tokens a document
has. Columns passed together are resampled together, which keeps pairs together: the replicates of a
difference are the difference of the replicates.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from scipy import special

_CELLS_AT_ONCE = 4_000_000  # of a weight matrix: 32 MB


def _chunks(n_resamples: int, n_clusters: int) -> Iterator[int]:
    step = max(1, _CELLS_AT_ONCE // n_clusters)
    for done in range(0, n_resamples, step):
        yield min(step, n_resamples - done)


def bootstrap_sums(columns: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return sums of `columns`, (G, k), over clusters drawn with replacement: (n_resamples, k).

    The sums have the columns' type; whole numbers as float32 take half the time.
    """
    n_clusters = len(columns)
    parts = []
    for rows in _chunks(n_resamples, n_clusters):
        drawn = rng.integers(0, n_clusters, (rows, n_clusters))
        drawn += n_clusters * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * n_clusters)
        parts.append(weights.reshape(rows, n_clusters).astype(columns.dtype) @ columns)
    return np.concatenate(parts)


def flipped_sums(
    columns: np.ndarray, n_resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, bool]:
    """Return sums of `columns`, (G, k), after random sign flips of clusters, (n, k).

    All 2^G patterns are taken, once each, where they are no more than the resamples: then the
    second value is True.
    """
    n_clusters = len(columns)
    if 2**n_clusters <= n_resamples:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n_clusters)))
        return signs @ columns, True
    parts = [
        (2.0 * rng.integers(0, 2, (rows, n_clusters), dtype=np.int8) - 1.0) @ columns
        for rows in _chunks(n_resamples, n_clusters)
    ]
    return np.concatenate(parts), False


def jackknife_error(jackknife: np.ndarray, estimate: np.ndarray | float) -> np.ndarray:
    """Return sqrt((G-1)/G · Σ (without g - estimate)²) over the first axis, (G, …)."""
    n_clusters = len(jackknife)
    total = np.sum((jackknife - estimate) ** 2, axis=0)
    return np.asarray(np.sqrt((n_clusters - 1) / n_clusters * total))


def tail_share(replicates: np.ndarray, std_error: float, df: float, level: float) -> float:
    """Return the share to cut off each end of bootstrap replicates, (R,).

    A plain (1 - level) / 2 gives intervals too narrow by sqrt((G-1)/G) and by normal quantiles in
    place of t: 91 % instead of 95 % with 20 clusters. The "expanded percentile" interval of
    Hesterberg (2015, The American Statistician 69:371) cuts further out; here at
    Phi(-t_df · std_error / sd(replicates)), so that normal replicates give the t interval.
    """
    spread = float(np.std(replicates))
    if spread == 0:
        return (1 - level) / 2
    t = special.stdtrit(df, (1 + level) / 2)
    return float(special.ndtr(-t * std_error / spread))
