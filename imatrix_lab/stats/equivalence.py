"""Equivalence of two runs by two one-sided tests, and the verdict."""

import math
from dataclasses import replace

import numpy as np
from scipy import special

from imatrix_lab.stats import power, sign_flips
from imatrix_lab.stats.clustered import Interval
from imatrix_lab.stats.paired import Sums

VERDICTS = ("better", "worse", "equivalent", "undecided")


def tost(interval: Interval, margin: float) -> float:
    """Return p of Schuirmann's two one-sided t tests (1987, J Pharmacokin Biopharm 15:657).

    The larger p of the nulls "difference <= -margin" and "difference >= margin", since both must
    be rejected. Rejects at level a exactly where the interval of level 1 - 2a lies inside
    ±margin. The margin must be chosen before the data are seen, as the smallest difference anyone
    should care about. Assumes what the interval assumes; for paired means there is
    `tost_by_permutation`.

    The usual a = 5 % is wrong in 6 to 8 % of cases where KLD is heavy-tailed, since one-sided
    tests suffer from skew; `verdict` therefore takes a = 2.5 %.

    Raises ValueError: a margin that is not positive.
    """
    _require_positive(margin)
    distance = margin - abs(interval.estimate)  # from the nearer margin
    if interval.std_error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(special.stdtr(interval.df, -distance / interval.std_error))


def tost_by_permutation(sums: Sums, margin: float) -> float:
    """Return p of two one-sided sign-flip tests of the clusters' distances from each margin.

    Right with few clusters and with unequal ones, if differences lie symmetrically around their
    mean.

    Raises ValueError: a margin that is not positive.
    """
    _require_positive(margin)
    above = -(sums.totals + margin * sums.sizes)
    below = sums.totals - margin * sums.sizes
    return max(
        sign_flips.p_value(side[sums.sizes > 0], one_sided=True)[0] for side in (above, below)
    )


def binary_interval(interval: Interval, sizes: np.ndarray, margin: float) -> Interval:
    """Return the interval to use in `tost` where values are right or wrong.

    Few unequal answers have too little spread, none have no spread at all, and the t test takes
    that for certainty. But a true difference of the margin needs at least that share of unequal
    answers, so under the null the standard error is sqrt(margin (1 - margin) Σ n²) / N or more,
    where a group's n items (`sizes`, (G,)) are taken to answer as one.
    """
    least = max(margin * (1 - margin) * float(np.sum(sizes**2)), 0.0) ** 0.5 / float(sizes.sum())
    return replace(interval, std_error=max(interval.std_error, least))


def _require_positive(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"the margin must be positive, not {margin}")


def verdict(
    estimate: float,
    p_difference: float,
    p_equivalence: float | None,
    lower_is_better: bool,
    alpha: float = 0.05,
) -> str:
    """Return better, worse, equivalent or undecided, for A against B.

    One interval decides both: the 95 % one excludes 0, or lies inside ±margin, which is TOST at
    2.5 % a side (alpha / 2; what ICH E9 asks of clinical trials). Equivalent comes first: a
    real difference smaller than the margin was declared beforehand not to matter.
    Each verdict is wrong with probability alpha at most; pass adjusted p values to keep that for
    a family.
    """
    if p_equivalence is not None and p_equivalence <= alpha / 2:
        return "equivalent"
    if p_difference <= alpha and estimate != 0:
        return "better" if (estimate < 0) == lower_is_better else "worse"
    return "undecided"


def clusters_to_decide(interval: Interval, margin: float, alpha: float = 0.05) -> int:
    """Return how many clusters make "undecided" impossible, whatever the true difference.

    With half-width w of the interval, a result is undecided only if |estimate| < w and
    |estimate| + w > margin; once 2 w <= margin that cannot be. The width is scaled from the one
    observed as 1/sqrt(G), which assumes more clusters of the same kind.

    Raises ValueError: a margin that is not positive, or an interval without a standard error.
    """
    _require_positive(margin)
    if not interval.std_error >= 0:
        raise ValueError("one cluster does not show how many are needed")
    spread = interval.std_error * (interval.df + 1) ** 0.5

    def enough(df: int) -> bool:
        half = float(special.stdtrit(df, 1 - alpha / 2)) * spread / (df + 1) ** 0.5
        return bool(2 * half <= margin)

    return power.smallest(enough, math.inf) + 1  # degrees of freedom: one less than clusters
