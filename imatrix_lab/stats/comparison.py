"""One question, all its answers: the comparison of two runs on one text or set of items."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from imatrix_lab.stats import binary, equivalence, paired, power, sequential
from imatrix_lab.stats.clustered import Interval
from imatrix_lab.stats.interaction import Contrast
from imatrix_lab.stats.paired import PairedMean, Sums

ALPHA = 0.05


@dataclass(frozen=True)
class Metric:
    """What is compared.

    Attributes
    ----------
    key : name in files.
    words, unit : for sentences; `scale` turns stored values into that unit.
    bound : what single values are clipped to for early stopping.
    """

    key: str
    words: str
    unit: str
    lower_is_better: bool
    bound: float
    scale: float = 1.0


METRICS = {
    m.key: m
    for m in (
        Metric("kld_nats", "KLD from the original", "nats a token", True, 0.5),
        Metric("nll_nats", "loss (ln perplexity)", "nats a token", True, 0.5),
        Metric("top1_agreement", "agreement on the top token", "points", False, 1.0, 100),
        Metric("score", "score", "points", False, 1.0, 100),
    )
}


@dataclass(frozen=True)
class Question:
    """Is A better than B on this text?

    Attributes
    ----------
    a, b, text : names for sentences.
    margin : the smallest difference that matters, stated beforehand, in stored units.
    values, clusters : what n and n_clusters count.
    """

    a: str
    b: str
    text: str
    metric: Metric
    margin: float | None = None
    values: str = "tokens"
    clusters: str = "documents"


@dataclass(frozen=True)
class Comparison:
    """The answer, with its uncertainty and what it does not say.

    Differences are A minus B in stored units (nats; shares of 1).

    Attributes
    ----------
    std_error, low, high, df, p_value : to be quoted; see `paired.mean_difference`, and `samples`,
        which replaces them where calibration samples were repeated.
    p_holm, p_max_t, q_bh : adjusted for the family, and over everything; NaN before `adjusted`.
    p_equivalence, p_equivalence_adjusted : of TOST; NaN without a margin.
    adjust : which adjusted value the verdict used.
    detectable : the smallest true difference these data find in 4 of 5 tries; infinite where the
        permutation of so few clusters cannot reach 5 %.
    n_to_decide, clusters_to_decide : with which no result stays undecided, whatever is true; 0
        without a margin.
    n_excluded : values that were not finite in A or B.
    anytime_stop : clusters after which, looking at each, one could have stopped; 0 for never.
    """

    question: Question
    mean_a: float
    mean_b: float
    estimate: float
    std_error: float
    low: float
    high: float
    df: float
    p_value: float
    method: str
    paired: PairedMean
    n: int
    n_clusters: int
    n_excluded: int
    detectable: float
    p_equivalence: float
    p_non_inferior: float
    n_to_decide: int
    clusters_to_decide: int
    anytime_stop: int
    items: Items | None = None
    tails: dict[str, Interval] | None = None
    samples: Contrast | None = None
    family: str = ""
    n_family: int = 1
    adjust: str = "none"
    p_holm: float = math.nan
    p_max_t: float = math.nan
    q_bh: float = math.nan
    p_equivalence_adjusted: float = math.nan
    noise_multiple: float = math.nan

    def p_adjusted(self) -> float:
        """Return the p value that the verdict used."""
        chosen = {"holm": self.p_holm, "max-t": self.p_max_t, "bh": self.q_bh}
        found = chosen.get(self.adjust, math.nan)
        return self.p_value if math.isnan(found) else found

    def verdict(self) -> str:
        """Return better, worse, equivalent or undecided; see `equivalence.verdict`."""
        p = self.p_equivalence_adjusted
        p = self.p_equivalence if math.isnan(p) else p
        return equivalence.verdict(
            self.estimate,
            self.p_adjusted(),
            None if math.isnan(p) else p,
            self.question.metric.lower_is_better,
            ALPHA,
        )


@dataclass(frozen=True)
class Items:
    """What right and wrong add to the difference of shares.

    Attributes
    ----------
    table : the paired 2 x 2 counts, all items.
    mcnemar : exact, by cluster.
    newcombe_low, newcombe_high, posterior, stratified : of the table's effective size.
    """

    table: binary.Table
    mcnemar: binary.McNemar
    newcombe_low: float
    newcombe_high: float
    posterior: binary.Posterior
    stratified: binary.Stratified


def compare(
    question: Question,
    values: tuple[np.ndarray, np.ndarray],
    codes: np.ndarray,
    rng: np.random.Generator,
    n_resamples: int = 10_000,
    strata: np.ndarray | None = None,
    windows: np.ndarray | None = None,
) -> Comparison:
    """Return everything about A against B on the same tokens or items.

    Parameters
    ----------
    values : A's and B's, (n,) each; pairs with a value that is not finite are excluded, counted.
    codes : (n,), cluster of each; integers from 0.
    strata : (n,), task of each item, integers.
    windows : (n,), window of each token, for a text of one document; see `paired.one_document`.

    Raises
    ------
    ValueError : nothing to compare, or one document that is too short.
    """
    good = np.isfinite(values[0]) & np.isfinite(values[1])
    a, b = (np.asarray(v, np.float64)[good] for v in values)
    if not len(a):
        raise ValueError("no value is finite in both")
    codes = codes[good]
    sums = Sums.of(a - b, codes, int(codes.max()) + 1)
    if np.count_nonzero(sums.sizes) > 1:
        found = paired.mean_difference(sums, rng, n_resamples, 1 - ALPHA)
    else:
        if windows is None:
            raise ValueError("one cluster, and no windows to resample")
        _, order = np.unique(windows[good], return_inverse=True)
        pieces = Sums.of(a - b, order, int(order.max()) + 1)
        found = paired.one_document(pieces.totals, pieces.sizes, rng, n_resamples, 1 - ALPHA)
    result = Comparison(
        question=question,
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        estimate=found.interval.estimate,
        std_error=found.interval.std_error,
        low=found.interval.low,
        high=found.interval.high,
        df=found.interval.df,
        p_value=found.p_value,
        method=found.method,
        paired=found,
        n=len(a),
        n_clusters=found.interval.n_clusters,
        n_excluded=int(len(good) - len(a)),
        detectable=math.nan,
        p_equivalence=math.nan,
        p_non_inferior=math.nan,
        n_to_decide=0,
        clusters_to_decide=0,
        anytime_stop=_stop(question, a, b, codes),
        items=_items(question, a, b, codes, found, strata if strata is None else strata[good], rng),
    )
    return _judged(result, sums, rng, n_resamples)


def _judged(
    c: Comparison, sums: Sums | None, rng: np.random.Generator | None, n_resamples: int
) -> Comparison:
    """Add what follows from estimate and standard error: detectable, TOST, what would decide."""
    interval = Interval(c.estimate, c.std_error, c.low, c.high, c.n, c.n_clusters, c.df)
    if not c.df >= 1:
        return c
    hopeless = c.method == "permutation" and 2.0 ** (1 - c.n_clusters) > ALPHA
    found = math.inf if hopeless else power.detectable_at(c.std_error, c.df, alpha=ALPHA)
    c = replace(c, detectable=found)
    margin, lower = c.question.margin, c.question.metric.lower_is_better
    if margin is None:
        return c
    if c.items is not None and sums is not None:
        interval = equivalence.binary_interval(interval, sums.sizes, margin)
    tost = equivalence.tost(interval, margin, lower)
    if c.method == "permutation" and sums is not None and rng is not None:
        exact = equivalence.tost_by_permutation(sums, margin, lower, rng, n_resamples)
        # of few answers that never differ, the permutation is as certain as t
        tost = exact if c.items is None or exact.p_value > tost.p_value else tost
    needed = _needed(c, interval, margin)
    share = needed / (c.df + 1)  # of one document, df + 1 are its independent blocks
    return replace(
        c,
        p_equivalence=tost.p_value,
        p_non_inferior=tost.p_non_inferior,
        clusters_to_decide=max(math.ceil(c.n_clusters * share), 1) if c.samples is None else 0,
        n_to_decide=math.ceil(c.n * share) if c.samples is None else 0,
    )


def _needed(c: Comparison, interval: Interval, margin: float) -> float:
    """Return the clusters that would decide, by the width of the interval quoted or TOST's."""
    width = (c.high - c.low) / 2
    if math.isfinite(width):
        error = width / float(special.stdtrit(c.df, 1 - ALPHA / 2))
        at_least = interval.std_error if c.items is not None else 0.0
        interval = replace(interval, std_error=max(error, at_least))
    needed = equivalence.clusters_to_decide(interval, margin, ALPHA)
    return max(needed, 6) if c.method == "permutation" else needed  # fewer never reach 5 %


def with_samples(c: Comparison, found: Contrast) -> Comparison:
    """Return the comparison with calibration sample as a random effect, where there are several.

    No number of tokens decides what depends on samples: then `n_to_decide` is 0.
    """
    if not found.separable or math.isnan(found.p_value):
        return replace(c, samples=found)
    c = replace(
        c,
        samples=found,
        std_error=found.std_error,
        low=found.low,
        high=found.high,
        df=found.df,
        p_value=found.p_value,
        method="samples",
        p_equivalence=math.nan,
        n_to_decide=0,
        clusters_to_decide=0,
    )
    return _judged(c, None, None, 0)


def _stop(question: Question, a: np.ndarray, b: np.ndarray, codes: np.ndarray) -> int:
    """Return after how many clusters an evaluation could have stopped."""
    bound = question.metric.bound
    clipped = Sums.of(np.clip(a - b, -bound, bound), codes, int(codes.max()) + 1)
    there = clipped.sizes > 0
    means = clipped.totals[there] / clipped.sizes[there]
    return sequential.bounded_mean(means, bound).decided_at(question.margin) or 0


def _items(
    question: Question,
    a: np.ndarray,
    b: np.ndarray,
    codes: np.ndarray,
    found: PairedMean,
    strata: np.ndarray | None,
    rng: np.random.Generator,
) -> Items | None:
    """Return exact answers where every value is right or wrong."""
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        return None
    table = binary.Table.of(a, b)
    effective = table.effective(found.design_effect)
    low, high = binary.newcombe(effective)
    tasks = np.zeros(len(a), int) if strata is None else strata
    each = [
        binary.Table.of(a[tasks == t], b[tasks == t]).effective(found.design_effect)
        for t in np.unique(tasks)
    ]
    return Items(
        table=table,
        mcnemar=binary.mcnemar(np.bincount(codes, a - b)),
        newcombe_low=low,
        newcombe_high=high,
        posterior=binary.posterior(effective, rng, question.margin),
        stratified=binary.stratified(each),
    )
