"""Are two runs equal for all that matters? Two one-sided tests, and the verdict."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from imatrix_lab.stats import paired
from imatrix_lab.stats.clustered import Interval

VERDICTS = ("better", "worse", "equivalent", "undecided")


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of a difference A minus B.

    Attributes
    ----------
    margin : the smallest difference that matters, in the metric's unit.
    p_low, p_high : of the nulls "difference <= -margin" and "difference >= margin".
    p_value : the larger: both must be rejected to call the two equivalent.
    p_non_inferior : of the null "A is worse than B by the margin or more".
    """

    margin: float
    p_low: float
    p_high: float
    p_value: float
    p_non_inferior: float


def tost(interval: Interval, margin: float, lower_is_better: bool) -> Equivalence:
    """Return Schuirmann's two one-sided t tests (1987, J Pharmacokin Biopharm 15:657).

    Rejects at level a exactly where the interval of level 1 - 2a lies inside ±margin. The margin
    must be chosen before the data are seen, as the smallest difference anyone should care about.
    Assumes what the interval assumes; with few clusters use `tost_by_permutation`.

    The usual a = 5 % is wrong in 6 to 8 % of cases where KLD is heavy-tailed, since one-sided
    tests suffer from skew; `verdict` therefore takes a = 2.5 %.

    Raises
    ------
    ValueError : a margin that is not positive.
    """
    _demand_positive(margin)

    def p(distance: float) -> float:
        if interval.std_error == 0:
            return 0.0 if distance > 0 else 1.0
        return float(special.stdtr(interval.df, -distance / interval.std_error))

    return _joined(
        margin, p(interval.estimate + margin), p(margin - interval.estimate), lower_is_better
    )


def tost_by_permutation(
    sums: paired.Sums,
    margin: float,
    lower_is_better: bool,
    rng: np.random.Generator,
    n_resamples: int = 10_000,
) -> Equivalence:
    """Return two one-sided sign-flip tests of the clusters' distances from each margin.

    Exact, with few clusters too, if differences lie symmetrically around their mean.

    Raises
    ------
    ValueError : a margin that is not positive.
    """
    _demand_positive(margin)
    above = -(sums.totals + margin * sums.sizes)
    below = sums.totals - margin * sums.sizes
    p_low, _ = paired.sign_flip(above, rng, n_resamples, one_sided=True)
    p_high, _ = paired.sign_flip(below, rng, n_resamples, one_sided=True)
    return _joined(margin, p_low, p_high, lower_is_better)


def binary_interval(interval: Interval, sizes: np.ndarray, margin: float) -> Interval:
    """Return the interval to hand to `tost` where values are right or wrong.

    Few unequal answers show too little spread, none shows none at all, and the t test takes that
    for certainty. But a true difference of the margin needs at least that share of unequal
    answers, so under the null the standard error is sqrt(margin (1 - margin) Σ n²) / N or more,
    groups of n items taken to answer as one.

    Parameters
    ----------
    sizes : (G,), items of each group.
    """
    least = max(margin * (1 - margin) * float(np.sum(sizes**2)), 0.0) ** 0.5 / float(sizes.sum())
    return replace(interval, std_error=max(interval.std_error, least))


def _demand_positive(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"a margin of {margin} is no difference that matters: it must be positive")


def _joined(margin: float, p_low: float, p_high: float, lower_is_better: bool) -> Equivalence:
    return Equivalence(
        margin, p_low, p_high, max(p_low, p_high), p_high if lower_is_better else p_low
    )


def verdict(
    estimate: float,
    p_difference: float,
    p_equivalence: float | None,
    lower_is_better: bool,
    alpha: float = 0.05,
) -> str:
    """Return better, worse, equivalent or undecided, said of A against B.

    One interval decides both: the 95 % one excludes 0, or lies inside ±margin, which is TOST at
    2.5 % a side (alpha / 2; what ICH E9 asks of clinical trials). Equivalent comes first: a
    difference that is there but smaller than the margin was declared beforehand not to matter.
    Each word is wrong with probability alpha at most; hand in adjusted p values to keep that for
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
    seen as 1/sqrt(G), which assumes more clusters of the same kind.

    Raises
    ------
    ValueError : a margin that is not positive, or an interval without a standard error.
    """
    _demand_positive(margin)
    if not interval.std_error >= 0:
        raise ValueError("one cluster says nothing about how many are needed")
    spread = interval.std_error * (interval.df + 1) ** 0.5

    def enough(df: int) -> bool:
        half = float(special.stdtrit(df, 1 - alpha / 2)) * spread / (df + 1) ** 0.5
        return bool(2 * half <= margin)

    low, high = 1, 2  # degrees of freedom: one less than clusters
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high + 1
