"""One question, all its answers: the comparison of two runs on one text or set of items."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from imatrix_lab.stats import binary, equivalence, paired, power
from imatrix_lab.stats.clustered import Interval
from imatrix_lab.stats.interaction import Contrast
from imatrix_lab.stats.metrics import Metric
from imatrix_lab.stats.paired import PairedMean, Sums

ALPHA = 0.05


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
class BinaryItems:
    """Exact results where every value is right or wrong.

    Attributes
    ----------
    table : counts of all items.
    mcnemar : exact, by cluster.
    newcombe_low, newcombe_high : 95 % interval from the counts' effective size, in stored units.
    """

    table: binary.PairedCounts
    mcnemar: binary.McNemar
    newcombe_low: float
    newcombe_high: float


@dataclass(frozen=True)
class Comparison:
    """The difference of two runs, its uncertainty and the verdict.

    Differences are A minus B in stored units (nats; shares of 1).

    Attributes
    ----------
    std_error, low, high, df, p_value : the ones to quote; see `paired.mean_difference`, and
        `samples`, which replaces them where calibration samples were repeated.
    p_holm, p_max_t, q_bh : adjusted for the family, and over everything; NaN before `adjusted`.
    p_equivalence, p_equivalence_adjusted : of TOST; NaN without a margin.
    adjust : which adjusted value the verdict used.
    detectable : the smallest true difference these data detect with 80 % power; infinite where
        the permutation of so few clusters cannot reach 5 %.
    n_to_decide, clusters_to_decide : with which no result stays undecided, whatever is true; 0
        without a margin.
    n_excluded : values that were not finite in A or B.
    items : where every value is 0 or 1.
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
    detectable: float = math.nan
    p_equivalence: float = math.nan
    n_to_decide: int = 0
    clusters_to_decide: int = 0
    items: BinaryItems | None = None
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
        by_method = {"holm": self.p_holm, "max-t": self.p_max_t, "bh": self.q_bh}
        adjusted = by_method.get(self.adjust, math.nan)
        return self.p_value if math.isnan(adjusted) else adjusted

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


def compare(
    question: Question,
    values: tuple[np.ndarray, np.ndarray],
    codes: np.ndarray,
    rng: np.random.Generator,
    n_resamples: int = 10_000,
    windows: np.ndarray | None = None,
) -> Comparison:
    """Return everything about A against B on the same tokens or items.

    Parameters
    ----------
    values : A's and B's, (n,) each; pairs with a value that is not finite are excluded, counted.
    codes : (n,), cluster of each; integers from 0.
    windows : (n,), window of each token, for a text of one document; see `paired.one_document`.

    Raises ValueError: nothing to compare, or one document that is too short.
    """
    finite = np.isfinite(values[0]) & np.isfinite(values[1])
    a, b = (np.asarray(v, np.float64)[finite] for v in values)
    if not len(a):
        raise ValueError("no value is finite in both runs")
    codes = codes[finite]
    sums = Sums.of(a - b, codes, int(codes.max()) + 1)
    if np.count_nonzero(sums.sizes) > 1:
        mean = paired.mean_difference(sums, 1 - ALPHA)
    elif windows is None:
        raise ValueError("one cluster, and no windows to resample")
    else:
        _, order = np.unique(windows[finite], return_inverse=True)
        by_window = Sums.of(a - b, order, int(order.max()) + 1)
        mean = paired.one_document(by_window.totals, by_window.sizes, rng, n_resamples, 1 - ALPHA)
    interval = mean.interval
    comparison = Comparison(
        question=question,
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        estimate=interval.estimate,
        std_error=interval.std_error,
        low=interval.low,
        high=interval.high,
        df=interval.df,
        p_value=mean.p_value,
        method=mean.method,
        paired=mean,
        n=len(a),
        n_clusters=interval.n_clusters,
        n_excluded=int(len(finite) - len(a)),
        items=_binary_items(a, b, codes, mean.design_effect),
    )
    return _with_equivalence(comparison, sums)


def _binary_items(
    a: np.ndarray, b: np.ndarray, codes: np.ndarray, design_effect: float
) -> BinaryItems | None:
    """Return exact results where every value is right or wrong."""
    try:
        counts = binary.PairedCounts.of(a, b)
    except ValueError:
        return None
    low, high = binary.newcombe(counts.effective(design_effect))
    return BinaryItems(counts, binary.mcnemar(np.bincount(codes, a - b)), low, high)


def _with_equivalence(c: Comparison, sums: Sums | None) -> Comparison:
    """Add what follows from estimate and standard error: detectable, TOST, what would decide."""
    if not c.df >= 1:
        return c
    hopeless = c.method == "permutation" and 2.0 ** (1 - c.n_clusters) > ALPHA
    detectable = math.inf if hopeless else power.detectable_at(c.std_error, c.df, alpha=ALPHA)
    c = replace(c, detectable=detectable)
    margin = c.question.margin
    if margin is None:
        return c
    interval = Interval(c.estimate, c.std_error, c.low, c.high, c.n, c.n_clusters, c.df)
    if c.items is not None and sums is not None:
        interval = equivalence.binary_interval(interval, sums.sizes, margin)
    p = equivalence.tost(interval, margin)
    if c.method == "permutation" and sums is not None:
        p_permutation = equivalence.tost_by_permutation(sums, margin)
        # of few answers that never differ, the permutation is as certain as t
        p = p_permutation if c.items is None else max(p, p_permutation)
    c = replace(c, p_equivalence=p)
    if c.samples is not None:  # no number of tokens decides what depends on samples
        return c
    share = _clusters_needed(c, interval, margin) / (c.df + 1)  # one document has df + 1 blocks
    return replace(
        c,
        clusters_to_decide=max(math.ceil(c.n_clusters * share), 1),
        n_to_decide=math.ceil(c.n * share),
    )


def _clusters_needed(c: Comparison, interval: Interval, margin: float) -> float:
    """Return the clusters that would decide, by the width of the interval quoted or TOST's."""
    width = (c.high - c.low) / 2
    if math.isfinite(width):
        error = width / float(special.stdtrit(c.df, 1 - ALPHA / 2))
        at_least = interval.std_error if c.items is not None else 0.0
        interval = replace(interval, std_error=max(error, at_least))
    needed = equivalence.clusters_to_decide(interval, margin, ALPHA)
    return max(needed, 6) if c.method == "permutation" else needed  # fewer never reach 5 %


def with_samples(c: Comparison, contrast: Contrast) -> Comparison:
    """Return the comparison with calibration sample as a random effect, where there are several.

    No number of tokens decides what depends on samples: then `n_to_decide` is 0.
    """
    if not contrast.separable or math.isnan(contrast.p_value):
        return replace(c, samples=contrast)
    c = replace(
        c,
        samples=contrast,
        std_error=contrast.std_error,
        low=contrast.low,
        high=contrast.high,
        df=contrast.df,
        p_value=contrast.p_value,
        method="samples",
        p_equivalence=math.nan,
        n_to_decide=0,
        clusters_to_decide=0,
    )
    return _with_equivalence(c, None)
