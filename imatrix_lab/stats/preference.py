"""Preferences of people between answers: a mean with two error terms, its power, strengths.

A vote is a prompt, a rater, and a choice between two answers from -1 to 1. Prompts are a sample,
and so are people: who ignores that one rater likes long answers finds a winner in up to six of ten
comparisons of equals.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from imatrix_lab.stats import clustered, power, sign_flips
from imatrix_lab.stats.clustered import Interval
from imatrix_lab.stats.power import PowerAnalysis

RATERS_MIN = 3
"""With fewer, nothing is known of how people differ: the result is of these people alone."""

PROMPTS_MAX = 1_000_000
"""What takes more prompts takes more people."""


@dataclass(frozen=True)
class MeanPreference:
    """The mean of choices, from -1 to 1, with interval and test.

    Attributes
    ----------
    se_prompts, se_raters : standard errors from the sampling of each; NaN if not separable.
    of_people : the interval holds for people like these, not for these alone.
    """

    interval: Interval
    p_value: float
    se_prompts: float
    se_raters: float
    n_raters: int
    of_people: bool


def mean_preference(
    choices: np.ndarray, prompts: np.ndarray, raters: np.ndarray, level: float = 0.95
) -> MeanPreference:
    """Return the mean choice with prompts and raters as crossed random effects.

    The variances of the jackknife over prompts and over raters add, with degrees of freedom by
    Satterthwaite (1946); what varies from vote to vote counts in both: slightly conservative.
    With fewer than `RATERS_MIN` raters: sign flips of prompts.

    `choices` (n,) from -1 to 1; `prompts` and `raters` (n,) are codes from 0.

    Raises ValueError: fewer than two prompts.
    """
    choices = np.asarray(choices, np.float64)
    by_prompt, by_rater = _sums(choices, prompts), _sums(choices, raters)
    if len(by_prompt[0]) < 2:
        raise ValueError("votes on one prompt do not show how prompts differ")
    own, n_raters = clustered.mean(*by_prompt, level), len(by_rater[0])
    if n_raters < RATERS_MIN:
        low, high = sign_flips.interval(*by_prompt, level)
        interval = Interval(own.estimate, own.std_error, low, high, own.n, own.n_clusters, own.df)
        p, _ = sign_flips.p_value(by_prompt[0])
        return MeanPreference(interval, p, own.std_error, np.nan, n_raters, False)
    other = clustered.mean(*by_rater, level)
    parts = [(m.std_error**2, m.df) for m in (own, other)]
    error, df = clustered.satterthwaite(parts)
    low, high = clustered.t_interval(own.estimate, error, df, level)
    low, high = max(low, -1.0), min(high, 1.0)  # what a mean of choices can be
    p = 1.0 if own.estimate == 0 else 0.0
    if error:
        p = float(2 * special.stdtr(df, -abs(own.estimate) / error))
    interval = Interval(own.estimate, error, low, high, own.n, own.n_clusters, df, level)
    return MeanPreference(interval, p, own.std_error, other.std_error, n_raters, True)


def _sums(choices: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return clustered.checked(np.bincount(codes, choices), np.bincount(codes))


@dataclass(frozen=True)
class PlannedVotes:
    """Votes of some people, each of whom is to judge every prompt.

    Attributes
    ----------
    decided : share of votes that are no ties, which is the most that the variance of one can be.
    icc_prompts : correlation of two people's votes on one prompt.
    icc_raters : correlation of a person's votes on two prompts: people's taste.
    """

    decided: float
    icc_prompts: float
    icc_raters: float
    n_raters: int

    def variances(self, n_prompts: int) -> tuple[float, float, float]:
        """Return what the jackknives over prompts and over raters give, and the mean's own."""
        noise = self.decided * (1 - self.icc_prompts - self.icc_raters) / n_prompts / self.n_raters
        by_prompt = self.decided * self.icc_prompts / n_prompts + noise
        if self.n_raters < RATERS_MIN:
            return by_prompt, 0.0, by_prompt
        by_rater = self.decided * self.icc_raters / self.n_raters + noise
        return by_prompt, by_rater, by_prompt + by_rater - noise

    def power_at(
        self, n_prompts: int, effect: float, alpha: float = 0.05, margin: float | None = None
    ) -> float:
        """Return the probability to find `effect`, or with a margin, to call it equivalent.

        That of a t test whose error is estimated by both jackknives, averaged over that of raters:
        with few of them it varies most (a chi-square's), and the degrees of freedom with it.
        """
        by_prompt, by_rater, own = self.variances(n_prompts)
        error, df = own**0.5, n_prompts - 1.0
        if not by_rater:
            if margin is None:
                return power.superiority(effect, error, df, alpha)
            return power.equivalence(effect, margin, error, df, alpha)
        n = self.n_raters - 1.0
        parts = by_rater * special.gammaincinv(n / 2, (np.arange(200) + 0.5) / 200) * 2 / n
        both = by_prompt + parts
        cut = special.stdtrit(both**2 / (by_prompt**2 / df + parts**2 / n), 1 - alpha / 2)
        cut, shift = cut * np.sqrt(both) / error, effect / error
        if margin is None:
            return float(np.mean(special.ndtr(shift - cut) + special.ndtr(-shift - cut)))
        room = margin / error - cut
        inside = special.ndtr(room - shift) - special.ndtr(-room - shift)
        return float(np.mean(np.where(room > 0, inside, 0.0)))

    def analyse(
        self, n_prompts: int, margin: float, alpha: float = 0.05, wanted: float = power.POWER
    ) -> PowerAnalysis:
        """Return what votes on `n_prompts` can detect; 0 where no number of prompts is enough."""

        def needed(effect: float, margin: float | None) -> int:
            def is_enough(n: int) -> bool:
                return self.power_at(n, effect, alpha, margin) >= wanted

            return power.smallest(is_enough) if is_enough(PROMPTS_MAX) else 0

        error = self.variances(n_prompts)[-1] ** 0.5
        return PowerAnalysis(
            error * power.solve(lambda x: self.power_at(n_prompts, x * error, alpha) - wanted),
            self.power_at(n_prompts, margin, alpha),
            self.power_at(n_prompts, 0.0, alpha, margin),
            needed(margin, None),
            needed(0.0, margin),
        )


@dataclass(frozen=True)
class Strengths:
    """Log strengths of systems, (k,), mean 0, with jackknife errors; and the log of ties' share."""

    log_strengths: np.ndarray
    std_errors: np.ndarray
    log_ties: float


def strengths(
    pairs: np.ndarray, outcomes: np.ndarray, prompts: np.ndarray, n_systems: int
) -> Strengths:
    """Return Davidson's strengths (1970, JASA 65:317): Bradley and Terry's, with ties.

    P(i before j) is proportional to s_i, P(j before i) to s_j, P(tie) to ν sqrt(s_i s_j). Errors
    are of the jackknife over prompts.

    `pairs` (n, 2) are codes of systems; `outcomes` (n,) 1 (the first), 0 (tie) or -1.

    Raises ValueError: a system that never won, nor was tied, or one that never lost.
    """
    pairs, outcomes = np.asarray(pairs), np.sign(outcomes).astype(int)
    points = np.zeros((2, n_systems))
    for side, sign in ((0, 1), (1, -1)):
        np.add.at(points[0], pairs[:, side], outcomes * sign >= 0)
        np.add.at(points[1], pairs[:, side], outcomes * sign <= 0)
    if not points.all():
        raise ValueError("a system won all of its votes, or lost all: it has no finite strength")
    # equal votes are counted: a fit of the rest costs the same whatever the number of votes
    kinds, kind = np.unique(np.column_stack([pairs, outcomes]), axis=0, return_inverse=True)
    n_prompts = int(prompts.max()) + 1
    counts = np.zeros((n_prompts, len(kinds)))
    np.add.at(counts, (prompts, kind.ravel()), 1)
    counts = counts[counts.any(axis=1)]
    design, chosen = _design(kinds, n_systems)
    whole = _fit(design, chosen, counts.sum(axis=0))
    slopes, information = _derivatives(design, chosen, whole)
    # the jackknife by one step of Newton's method: leaving out a prompt moves the fit so far
    inverse = np.linalg.pinv(np.einsum("k,kst->st", counts.sum(axis=0), information))
    moved = counts @ slopes @ inverse
    g = len(counts)
    errors = np.sqrt((g / (g - 1)) * np.sum(moved**2, axis=0))
    return Strengths(whole[:-1], errors[:-1], float(whole[-1]))


def _design(kinds: np.ndarray, n_systems: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what the log weights of first, tie and second depend on, (k, 3, s + 1); the chosen."""
    first, second, outcome = kinds.T
    rows = np.arange(len(kinds))
    design = np.zeros((len(kinds), 3, n_systems + 1))
    design[rows, 0, first], design[rows, 2, second] = 1, 1
    design[rows, 1, first], design[rows, 1, second], design[:, 1, -1] = 0.5, 0.5, 1
    return design, design[rows, 1 - outcome]


def _derivatives(
    design: np.ndarray, chosen: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return slope and information of each kind's log-likelihood, (k, s + 1) and its square."""
    shares = special.softmax(design @ x, axis=1)
    mean = np.einsum("kc,kcs->ks", shares, design)
    square = np.einsum("kc,kcs,kct->kst", shares, design, design)
    return chosen - mean, square - mean[:, :, None] * mean[:, None, :]


def _fit(design: np.ndarray, chosen: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return log strengths, mean 0, and log ν of the greatest likelihood."""

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        total = special.logsumexp(design @ x, axis=1)
        slopes, _ = _derivatives(design, chosen, x)
        return float(counts @ (total - chosen @ x)), -(counts @ slopes)

    start = np.zeros(design.shape[2])
    x = optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-7}).x
    x[:-1] -= x[:-1].mean()
    return np.asarray(x)
