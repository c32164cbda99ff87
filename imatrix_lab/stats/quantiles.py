"""How much worse the worst tokens are: differences of quantiles, by bootstrap of documents."""

from dataclasses import dataclass

import numpy as np

from imatrix_lab.stats import clustered, resample
from imatrix_lab.stats.clustered import Interval


@dataclass(frozen=True)
class Tails:
    """Quantiles of one run, and of bootstrap samples of its clusters.

    Attributes
    ----------
    shares : (Q,), e.g. 0.5, 0.99, 0.999.
    estimates : (Q,).
    replicates : (R, Q).
    jackknife : (G, Q), without each cluster.
    """

    shares: tuple[float, ...]
    estimates: np.ndarray
    replicates: np.ndarray
    jackknife: np.ndarray
    n: int
    n_clusters: int


def tails(
    values: np.ndarray,
    codes: np.ndarray,
    shares: tuple[float, ...],
    rng: np.random.Generator,
    n_resamples: int = 10_000,
) -> Tails:
    """Return quantiles of one run for `difference`.

    Runs on the same tokens that are to be compared need generators in the same state: they then
    draw the same documents, and differences of replicates are paired.

    Parameters
    ----------
    values : (n,), finite.
    codes : (n,), integers 0 … G-1, none of them without a value.
    """
    n_clusters = int(codes.max()) + 1
    table = clustered.QuantileTable.of(values, codes, n_clusters, shares)
    sums = resample.bootstrap_sums(table.columns, n_resamples, rng)
    return Tails(
        shares, table.estimates, table.replicates(sums), table.jackknife(), len(values), n_clusters
    )  # fmt: skip


def difference(a: Tails, b: Tails, level: float = 0.95) -> tuple[Interval, ...]:
    """Return for each share the difference of the quantiles, A minus B, with its interval.

    It is the difference of the two runs' quantiles (say, how much worse the worst 1 % of tokens
    is), not a quantile of differences. Quantiles and interval are
    those of `clustered.quantile`, on paired replicates. Not to
    be used for shares that leave fewer than about ten clusters with values beyond.

    Raises
    ------
    ValueError : the two were not drawn alike.
    """
    if (a.shares, a.n, a.n_clusters, a.replicates.shape) != (
        b.shares, b.n, b.n_clusters, b.replicates.shape,
    ):  # fmt: skip
        raise ValueError("these tails were not drawn from the same tokens")
    found = []
    for q in range(len(a.shares)):
        estimate = float(a.estimates[q] - b.estimates[q])
        ends = (float("nan"),) * 3
        if a.n_clusters > 1:
            moved, without = (x[:, q] - y[:, q] for x, y in (
                (a.replicates, b.replicates), (a.jackknife, b.jackknife)
            ))  # fmt: skip
            ends = clustered.percentile(moved, without, estimate, level)
        found.append(Interval(estimate, *ends, a.n, a.n_clusters, a.n_clusters - 1, level))
    return tuple(found)
