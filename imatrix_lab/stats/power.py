"""Power analysis: what a comparison can detect, and how many clusters it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from imatrix_lab.stats.paired import Sums

POWER = 0.8
_MANY = 20  # differing answers from which on corrections to first order are right


@dataclass(frozen=True)
class Design:
    """What determines how precisely a paired difference can be measured.

    Attributes
    ----------
    sd : standard deviation of the difference of one item or token. For right and wrong it is
        sqrt(discordance - difference²), at most sqrt(discordance).
    icc : correlation of two differences of one cluster.
    cluster_size : mean number of items or tokens in a cluster.
    size_cv : standard deviation of cluster sizes over their mean.
    kurtosis : of the clusters' net differences; 3 for normal ones. Where few large groups decide,
        the standard error varies from one set of items to the next, and power with it.
    skewness_slope : skewness of the net differences that a mean difference of 1 brings along.
    binary : right and wrong; see `least_error`.
    answers : independent ones in a cluster: one, or each item for itself.
    differing : share of these that differ at all.
    discordance : of right and wrong, the largest difference there can be; else 0.
    """

    sd: float
    icc: float = 0.0
    cluster_size: float = 1.0
    size_cv: float = 0.0
    kurtosis: float = 3.0
    skewness_slope: float = 0.0
    binary: bool = False
    answers: float = 1.0
    differing: float = 1.0
    discordance: float = 0.0

    def design_effect(self) -> float:
        """Return 1 + (m (1 + cv²) - 1) · icc; Kish (1965), Eldridge et al. (2006)."""
        return max(1 + (self.cluster_size * (1 + self.size_cv**2) - 1) * self.icc, 0.0)

    def std_error(self, n_clusters: float) -> float:
        """Return the standard error that `n_clusters` give, root mean square."""
        return float(self.sd * (self.design_effect() / (n_clusters * self.cluster_size)) ** 0.5)

    def doubled(self) -> Design:
        """Return the design of the difference of two such differences, independent ones."""
        return replace(
            self,
            sd=self.sd * 2**0.5,
            kurtosis=3 + (self.kurtosis - 3) / 2,
            skewness_slope=self.skewness_slope / 2**1.5,
            binary=False,
            answers=2 * self.answers,
            discordance=2 * self.discordance,
        )

    def least_error(self, n_clusters: float, margin: float) -> float:
        """Return the standard error that TOST assumes at least; `equivalence.binary_interval`."""
        if not self.binary:
            return 0.0
        return float((margin * (1 - margin) * (1 + self.size_cv**2) / n_clusters) ** 0.5)

    def unrest(self, n_clusters: float) -> float:
        """Return the relative variance of the squared standard error beyond a normal one's.

        At most 1: with fewer clusters than that there is nothing to plan.
        """
        return min(max(self.kurtosis - 3, 0.0) / n_clusters, 1.0)


def binary_design(
    discordance: float, icc: float = 0.0, sizes: Sequence[int] | np.ndarray | None = None
) -> Design:
    """Return the design for right and wrong; `discordance` is the share of differing answers.

    With probability `icc` a group answers as one, else each item for itself.

    `sizes`: (G,), items of each group; None for single items.

    Raises ValueError: a discordance outside 0…1.
    """
    if not 0 < discordance <= 1:
        raise ValueError(f"discordance must be between 0 and 1, not {discordance}")
    n = np.ones(1) if sizes is None else np.asarray(sizes, float)
    alone = n * discordance + 3 * n * (n - 1) * discordance**2
    fourth = np.mean(icc * n**4 * discordance + (1 - icc) * alone)
    second = np.mean(icc * n**2 * discordance + (1 - icc) * n * discordance)
    third = np.mean(icc * n**3 + (1 - icc) * (n + 3 * n * (n - 1) * discordance))
    return Design(
        sd=discordance**0.5,
        icc=icc,
        cluster_size=float(n.mean()),
        size_cv=float(n.std() / n.mean()),
        kurtosis=float(fourth / second**2),
        skewness_slope=float(third / second**1.5),
        binary=True,
        answers=float(np.mean(icc + (1 - icc) * n)),
        differing=discordance,
        discordance=discordance,
    )


def from_pilot(sums: Sums) -> Design:
    """Return the design that a pilot's paired differences suggest.

    Itself an estimate: with 20 clusters a standard deviation is uncertain by 16 %, and the number
    of clusters needed by twice that.

    Raises ValueError: a pilot in which nothing differs, or of a single cluster.
    """
    kept = sums.sizes > 0
    totals, sizes = sums.totals[kept], sums.sizes[kept]
    if len(sizes) < 2:
        raise ValueError("the pilot is of one document or item: how they differ is unknown")
    sd = sums.variance() ** 0.5
    if sd == 0:
        raise ValueError("the two runs of the pilot do not differ: the spread is unknown")
    icc = sums.intra_cluster_correlation()
    net = (totals - totals.sum() / sizes.sum() * sizes) ** 2
    return Design(
        sd=sd,
        icc=0.0 if math.isnan(icc) else max(icc, 0.0),
        cluster_size=float(sizes.mean()),
        size_cv=float(np.std(sizes) / sizes.mean()),
        kurtosis=float(np.mean(net**2) / np.mean(net) ** 2) if net.any() else 3.0,
        differing=float(np.mean(totals != 0)),
    )


def design_power(
    design: Design, n_clusters: int, effect: float, alpha: float = 0.05, margin: float | None = None
) -> float:
    """Return the probability to find `effect`, or with a margin, to call it equivalent.

    As `superiority` and `equivalence`, where the clusters' net differences are not normal. To find:
    the t statistic's mean and variance are corrected to first order in kurtosis and skewness
    (delta method; a large group that differs raises estimate and error together). To call equal:
    averaged over standard errors of that relative variance, a gamma's, that scale the estimate's
    spread as well.

    Corrections to first order are wrong where few clusters differ; there the sign test bounds what
    can be found. An effect beyond the discordance is taken to be as large as that.
    """
    error, df, unrest = design.std_error(n_clusters), n_clusters - 1, design.unrest(n_clusters)
    if margin is None:
        effect = min(abs(effect), design.discordance or math.inf)
        shift = abs(effect) / error
        skew = design.skewness_slope * abs(effect) / n_clusters**0.5
        spread = max(1 - shift * skew + shift**2 * unrest / 4, 0.25) ** 0.5
        centre = shift * (1 + 3 / 8 * unrest) - skew / 2
        found = _rejected(centre / spread, special.stdtrit(df, 1 - alpha / 2) / spread, df)
        return min(found, _found_by_signs(design, n_clusters, effect, alpha))
    spreads, least = np.ones(1), design.least_error(n_clusters, margin)
    if unrest > 0:
        spreads = np.sqrt(unrest * special.gammaincinv(1 / unrest, (np.arange(40) + 0.5) / 40))
    return float(
        np.mean([equivalence(effect, margin, error * s, df, alpha, least) for s in spreads])
    )


def _found_by_signs(design: Design, n_clusters: int, effect: float, alpha: float) -> float:
    """Return the power of an exact sign test of the answers that differ, a binomial number.

    Without a discordance all of them are taken to differ in one direction.
    """
    n_answers = round(n_clusters * design.answers)
    if design.differing == 1 or n_answers * design.differing > _MANY:
        return 1.0
    n = np.arange(min(n_answers, 4 * _MANY) + 1)
    weights = np.diff(special.bdtr(n, n_answers, design.differing), prepend=0.0)
    fewer = np.floor(special.bdtrik(alpha / 2, n, 0.5))  # so few on one side are significant
    fewer -= special.bdtr(np.maximum(fewer, 0), n, 0.5) > alpha / 2
    p = (1 + (effect / design.discordance if design.discordance else 1.0)) / 2
    sides = special.bdtr(fewer, n, p) + special.bdtr(fewer, n, 1 - p)
    return float(np.sum(np.where(fewer >= 0, weights * sides, 0.0)))


def superiority(effect: float, std_error: float, df: float, alpha: float = 0.05) -> float:
    """Return the probability that a two-sided t test finds `effect`: the noncentral t."""
    if std_error == 0:
        return float(effect != 0)
    return _rejected(abs(effect) / std_error, special.stdtrit(df, 1 - alpha / 2), df)


def _rejected(shift: float, cut: float, df: float) -> float:
    """Return P(|noncentral t| > cut)."""

    def missed(s: np.ndarray) -> np.ndarray:
        return np.asarray(special.ndtr(cut * s - shift) - special.ndtr(-cut * s - shift))

    return 1 - _over_spread(missed, df)


def equivalence(
    effect: float,
    margin: float,
    std_error: float,
    df: float,
    alpha: float = 0.05,
    least: float = 0.0,
) -> float:
    """Return the probability that a true difference of `effect` is called equivalent.

    TOST at alpha / 2 a side, as `equivalence.verdict` has it; with an estimated standard error
    of `least` at least.

    With s the estimated over the true standard error, s² df ~ chi²(df), the estimate must fall
    within ±(margin - t s SE): an integral over s (Phillips 1990, J Pharmacokin Biopharm 18:137).
    """
    if std_error == 0:
        return float(abs(effect) < margin)
    cut = special.stdtrit(df, 1 - alpha / 2)
    z, shift, floor = margin / std_error, effect / std_error, least / std_error

    def inside(s: np.ndarray) -> np.ndarray:
        room = z - cut * np.maximum(s, floor)
        return np.where(room > 0, special.ndtr(room - shift) - special.ndtr(-room - shift), 0.0)

    return _over_spread(inside, df, z / cut)


def _over_spread(
    function: Callable[[np.ndarray], np.ndarray], df: float, end: float = math.inf
) -> float:
    """Return the mean of a function of s, s² df ~ chi²(df), which is 0 beyond `end`.

    By Gauss-Legendre between the 1e-12 quantiles; scipy's noncentral t is NaN for some arguments.
    """
    nodes, weights = _legendre()
    low, high = _spread_ends(df)
    high = min(high, max(end, low))
    s = low + (high - low) * (nodes + 1) / 2
    return float((high - low) / 2 * np.sum(weights * _spread_law(s, df) * function(s)))


@lru_cache(maxsize=64)
def _spread_ends(df: float) -> tuple[float, float]:
    """Return between which s lies but for a probability of 2e-12."""
    low, high = (float(np.sqrt(special.chdtri(df, p) / df)) for p in (1 - 1e-12, 1e-12))
    return low, high


@lru_cache(maxsize=1)
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights on -1…1; finding them takes 30 ms."""
    return np.polynomial.legendre.leggauss(200)


def _spread_law(s: np.ndarray, df: float) -> np.ndarray:
    """Return the density of s."""
    constant = np.log(2) + df / 2 * np.log(df / 2) - special.gammaln(df / 2)
    return np.asarray(np.exp(constant + (df - 1) * np.log(s) - df * s**2 / 2))


def detectable(design: Design, n_clusters: int, power: float = POWER, alpha: float = 0.05) -> float:
    """Return the smallest difference found with probability `power`: the MDE.

    Infinite where no difference can be found so: with fewer than two clusters, or with so few that
    hardly any is expected to differ.
    """
    largest = design.discordance or 1e6 * design.sd
    if n_clusters < 2 or design_power(design, n_clusters, largest, alpha) < power:
        return math.inf
    scale = design.std_error(n_clusters)
    return scale * solve(lambda x: design_power(design, n_clusters, x * scale, alpha) - power)


def detectable_at(std_error: float, df: float, power: float = POWER, alpha: float = 0.05) -> float:
    """Return the minimum detectable difference for a standard error; see `detectable`."""
    if not df >= 1:
        raise ValueError("fewer than two clusters detect nothing")
    return std_error * solve(lambda x: superiority(x, 1.0, df, alpha) - power)


def solve(lack: Callable[[float], float]) -> float:
    """Return where an increasing function of x >= 0 is 0."""
    high = 8.0
    while lack(high) < 0:
        high *= 2
    return float(optimize.brentq(lack, 0.0, high, xtol=1e-6))


def clusters_for_superiority(
    design: Design, effect: float, power: float = POWER, alpha: float = 0.05
) -> int:
    """Return the clusters needed to find a true difference of `effect`."""
    return smallest(lambda n: design_power(design, n, effect, alpha) >= power)


def clusters_for_equivalence(
    design: Design, margin: float, power: float = POWER, alpha: float = 0.05
) -> int:
    """Return the clusters needed to show equivalence where there is no difference."""
    return smallest(lambda n: design_power(design, n, 0.0, alpha, margin) >= power)


def smallest(enough: Callable[[int], bool], limit: float = 2**40) -> int:
    """Return the smallest integer above 1 from which on `enough` is true.

    What is true at some small number alone does not count: it must be at twice and four times that.

    Raises ValueError: it is above the limit.
    """
    low, high = 1, 2
    while not all(enough(k * high) for k in (1, 2, 4)):
        low, high = high, 2 * high
        if high > limit:
            raise ValueError("no feasible number of clusters is enough")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class PowerAnalysis:
    """What a comparison of so many clusters can detect, and how many a margin takes.

    Attributes
    ----------
    detectable : smallest true difference found with the wanted power; infinite if there is none.
    power_superiority : probability to find a true difference of the margin.
    power_equivalence : probability to show equivalence where there is no difference.
    clusters_superiority, clusters_equivalence : needed for the wanted power; 0 without a margin.
    """

    detectable: float
    power_superiority: float
    power_equivalence: float
    clusters_superiority: int
    clusters_equivalence: int


def analyse(
    design: Design, n_clusters: int, margin: float, alpha: float = 0.05, power: float = POWER
) -> PowerAnalysis:
    """Return what `n_clusters` can detect; margin NaN for none.

    Raises ValueError: the margin takes more clusters than anyone could score.
    """
    least = detectable(design, n_clusters, power, alpha)
    if math.isnan(margin):
        return PowerAnalysis(least, math.nan, math.nan, 0, 0)
    return PowerAnalysis(
        least,
        design_power(design, n_clusters, margin, alpha) if n_clusters > 1 else 0.0,
        design_power(design, n_clusters, 0.0, alpha, margin) if n_clusters > 1 else 0.0,
        clusters_for_superiority(design, margin, power, alpha),
        clusters_for_equivalence(design, margin, power, alpha),
    )
