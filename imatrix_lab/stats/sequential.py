"""Stopping early without fooling oneself: evidence that may be looked at after every cluster.

A p value computed after each document and stopped at the first p < 0.05 is wrong far more often
than one time in twenty. What is here may be looked at always: under the null, the probability
that it *ever* crosses its threshold is at most alpha (Ville 1939).
"""

from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True)
class SignProcess:
    """Evidence against "A and B win equally often", after each cluster.

    Attributes
    ----------
    log_e : (n,), natural logarithm of the e value.
    stopped_at : clusters seen when it first reached 1/alpha; None if it never did.
    """

    log_e: np.ndarray
    stopped_at: int | None


def sign_process(votes: np.ndarray, alpha: float = 0.05, a: float = 1.0) -> SignProcess:
    """Return the beta-binomial e-process of paired wins.

    With k wins of A among n votes cast, e = exp(betaln(a+k, a+n-k) - betaln(a, a) + n ln 2): the
    likelihood of a share of wins drawn from Beta(a, a), over that of a fair coin (Robbins 1970;
    Waudby-Smith & Ramdas 2024). Stop when e >= 1/alpha.

    Assumes independent votes that are fair coins under the null, so one vote a cluster: the sign
    of its net difference. Not to be used with items of one cluster as separate votes.

    Parameters
    ----------
    votes : (n,), in the order of evaluation, which must not depend on results: above 0 for A,
        below for B, 0 for a tie, which casts no vote.
    """
    votes = np.asarray(votes)
    wins = np.cumsum(votes > 0)
    cast = np.cumsum(votes != 0)
    log_e = special.betaln(a + wins, a + cast - wins) - special.betaln(a, a) + cast * np.log(2)
    reached = np.flatnonzero(log_e >= -np.log(alpha))
    return SignProcess(log_e, int(reached[0]) + 1 if len(reached) else None)


@dataclass(frozen=True)
class Sequence:
    """A confidence sequence: intervals that all hold at once with probability `level`.

    Attributes
    ----------
    low, high : (n,), after each cluster.
    """

    low: np.ndarray
    high: np.ndarray
    level: float

    def decided_at(self, margin: float | None = None) -> int | None:
        """Return the clusters after which the sequence first excludes 0 or lies in ±margin."""
        decided = (self.low > 0) | (self.high < 0)
        if margin is not None:
            decided |= (self.low > -margin) & (self.high < margin)
        found = np.flatnonzero(decided)
        return int(found[0]) + 1 if len(found) else None


_GRID = 1001


def bounded_mean(values: np.ndarray, bound: float, level: float = 0.95) -> Sequence:
    """Return a confidence sequence for the mean of independent values within ±bound.

    Hedged betting of Waudby-Smith & Ramdas (2024, JRSS B 86:1, Theorem 3): for each candidate
    mean m, the larger of ½ Π(1 + λ(x - m)) and ½ Π(1 - λ(x - m)), with stakes λ that know only
    what came before; candidates against which it ever reached 1/alpha are excluded for good.

    The values are one a cluster, e.g. a document's mean difference of KLD with each token's
    clipped to ±bound; so this is the mean of documents, not of tokens, and of clipped values: it
    decides whether to stop, and the fixed-sample interval is not to be quoted after stopping.

    Parameters
    ----------
    values : (n,), in the order of evaluation, which must not depend on results.
    bound : known before the data.

    Raises
    ------
    ValueError : a value outside ±bound.
    """
    values = np.asarray(values, float)
    if not (np.abs(values) <= bound).all():  # NaN too
        raise ValueError(f"values must lie within ±{bound}: clip each token first")
    x = (values + bound) / (2 * bound)
    alpha, n = 1 - level, len(x)
    t = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(x)) / (1 + t)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (1 + t)
    earlier = np.concatenate([[0.25], variance[:-1]])  # stakes know only what came before
    stakes = np.sqrt(2 * np.log(2 / alpha) / (earlier * t * np.log(1 + t)))
    grid = np.linspace(0, 1, _GRID)
    up, down = np.zeros(_GRID), np.zeros(_GRID)
    alive = np.ones(_GRID, bool)
    low, high = np.empty(n), np.empty(n)
    with np.errstate(divide="ignore"):
        most_up, most_down = 0.5 / grid, 0.5 / (1 - grid)
    for i in range(n):
        up += np.log1p(np.minimum(stakes[i], most_up) * (x[i] - grid))
        down += np.log1p(-np.minimum(stakes[i], most_down) * (x[i] - grid))
        alive &= np.maximum(up, down) < np.log(2 / alpha)
        left = np.flatnonzero(alive)
        # a candidate between grid points may be alive: one step wider
        ends = (left[0] - 1, left[-1] + 1) if len(left) else (0, _GRID - 1)
        low[i], high[i] = grid[max(ends[0], 0)], grid[min(ends[1], _GRID - 1)]
    return Sequence((2 * low - 1) * bound, (2 * high - 1) * bound, level)
