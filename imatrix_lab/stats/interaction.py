"""Does calibration in a language help that language more than others? Planned contrasts.

The question behind "is the nb imatrix better" is a difference of differences: what nb
calibration gains over en on nb text, less what it gains on en text. And one imatrix is one
sample of its language: what two samples of one language differ by is the yardstick.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from imatrix_lab.stats import clustered
from imatrix_lab.stats.paired import t_test


@dataclass(frozen=True)
class Cell:
    """One run on one text, in a contrast.

    Attributes
    ----------
    weight : what its mean is multiplied by; the weights of a contrast sum to 0.
    group : what the imatrix is a sample of (a language); "" is fixed: nothing was sampled.
    sample : which sample of it.
    totals, sizes, clusters : (G,), sums and counts by cluster, and the clusters' names. Cells
        that share names share documents (or translations of one document).
    """

    weight: float
    group: str
    sample: str
    totals: np.ndarray
    sizes: np.ndarray
    clusters: np.ndarray


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of means, with both sources of its uncertainty.

    Attributes
    ----------
    std_error : sqrt(se_documents² + se_samples²).
    se_documents : from which documents the text happened to hold.
    se_samples : from which text each imatrix was calibrated on; NaN if not separable.
    separable : every language has two samples or more; else the effect of a language cannot be
        told from that of its one text, and the interval is about these very imatrices.
    n_samples : samples by group.
    """

    estimate: float
    std_error: float
    low: float
    high: float
    df: float
    p_value: float
    se_documents: float
    se_samples: float
    separable: bool
    n_samples: dict[str, int]
    n: int
    n_clusters: int
    level: float


def contrast(cells: list[Cell], level: float = 0.95) -> Contrast:
    """Return Σ weight · mean over cells, with t inference.

    Documents: jackknife over documents, each taken out of all cells at once, so that shared
    documents stay paired; texts without common documents add their variances. Samples, where a
    group has K >= 2: the variance between the samples' own contrasts over K, with K - 1 degrees
    of freedom: calibration sample is a random effect, and documents are no replacement for it.
    The two are added (documents within samples count in both: slightly conservative), degrees of
    freedom by Satterthwaite (1946).

    Assumes independent documents and, within a group, samples drawn alike.

    Raises
    ------
    ValueError : weights that do not sum to 0, or a cell that is empty.
    """
    weights = np.array([c.weight for c in cells])
    if abs(weights.sum()) > 1e-9 * max(np.abs(weights).max(initial=0), 1e-300):
        raise ValueError("the weights of a contrast sum to 0")
    kept = [clustered.checked(c.totals, c.sizes) for c in cells]
    means = np.array([t.sum() / s.sum() for t, s in kept])
    parts = _documents(cells, means)
    samples, n_samples = _samples(cells, means)
    single = [g for g, k in n_samples.items() if k < 2]
    separable = bool(n_samples) and not single
    se_documents = sum(v for v, _ in parts) ** 0.5
    if separable:
        parts += samples
    variance = sum(v for v, _ in parts)
    df = _satterthwaite(parts)
    estimate, std_error = float(weights @ means), float(variance**0.5)
    low, high = clustered.t_interval(estimate, std_error, df, level)
    n_clusters = len({name for c in cells for name in c.clusters[c.sizes > 0].tolist()})
    found = clustered.Interval(estimate, std_error, low, high, 0, n_clusters, df, level)
    return Contrast(
        estimate=estimate,
        std_error=std_error,
        low=low,
        high=high,
        df=df,
        p_value=_p(found),
        se_documents=float(se_documents),
        se_samples=float(sum(v for v, _ in samples) ** 0.5) if separable else float("nan"),
        separable=separable,
        n_samples=n_samples,
        n=int(sum(s.sum() for _, s in kept)),
        n_clusters=n_clusters,
        level=level,
    )


def _p(found: clustered.Interval) -> float:
    return t_test(found) if found.df > 0 else float("nan")


def _satterthwaite(parts: list[tuple[float, float]]) -> float:
    """Return degrees of freedom of a sum of independent (variance, df)."""
    if any(not df > 0 for _, df in parts):
        return float("nan")
    below = sum(v**2 / df for v, df in parts)
    if below == 0:
        return min(df for _, df in parts)
    return float(sum(v for v, _ in parts) ** 2 / below)


def _documents(cells: list[Cell], means: np.ndarray) -> list[tuple[float, float]]:
    """Return (variance, df) for each set of cells that have documents in common."""
    left = list(range(len(cells)))
    found = []
    while left:
        members = [left.pop(0)]
        names = _present(cells[members[0]])
        while joining := [i for i in left if not names.isdisjoint(_present(cells[i]))]:
            for i in joining:
                left.remove(i)
                members.append(i)
                names |= _present(cells[i])
        order = {name: i for i, name in enumerate(sorted(names))}
        moved = np.zeros(len(order))
        for i in members:
            cell = cells[i]
            there = cell.sizes > 0
            totals, sizes = cell.totals[there], cell.sizes[there]
            at = [order[name] for name in cell.clusters[there].tolist()]
            moved[at] += cell.weight * (clustered.jackknife(totals, sizes) - means[i])
        n_clusters = len(order)
        # as CV3 of one mean: a contrast that moves with no document has variance 0
        variance = (n_clusters - 1) / n_clusters * float(np.sum(moved**2))
        found.append((variance, float(n_clusters - 1)))
    return found


def _present(cell: Cell) -> set[str]:
    return set(cell.clusters[cell.sizes > 0].tolist())


def _samples(
    cells: list[Cell], means: np.ndarray
) -> tuple[list[tuple[float, float]], dict[str, int]]:
    """Return (variance, df) of each group's mean over its samples, and numbers of samples."""
    shares: dict[str, dict[str, float]] = {}
    for cell, mean in zip(cells, means, strict=True):
        if cell.group:
            group = shares.setdefault(cell.group, {})
            group[cell.sample] = group.get(cell.sample, 0.0) + cell.weight * float(mean)
    parts = []
    for group in shares.values():
        k = len(group)
        if k > 1:  # each sample's share is already divided by k
            parts.append((k * float(np.var(list(group.values()), ddof=1)), float(k - 1)))
    return parts, {name: len(group) for name, group in shares.items()}


@dataclass(frozen=True)
class LogOdds:
    """The interaction on the scale of log odds.

    Attributes
    ----------
    estimate : log of the ratio of odds ratios.
    odds_ratio : exp(estimate).
    """

    estimate: float
    std_error: float
    low: float
    high: float
    p_value: float
    odds_ratio: float
    n: int
    n_clusters: int


def gee(
    correct: np.ndarray,
    calibration: np.ndarray,
    language: np.ndarray,
    clusters: np.ndarray,
    level: float = 0.95,
) -> LogOdds:
    """Return the interaction calibration x language of right answers, by GEE.

    Logistic model correct ~ calibration * language with exchangeable correlation within clusters
    (Liang & Zeger 1986, Biometrika 73:13) and the bias-reduced covariance of Mancl & DeRouen
    (2001), referred to t with G - 4 degrees of freedom. Not to be used below about 20 clusters,
    nor where all answers of one cell are right or all wrong.

    Parameters
    ----------
    correct, calibration, language : (n,), 0 or 1, one row an answer.
    clusters : (n,), integers; all answers to one item, in every language, share one.

    Raises
    ------
    ValueError : a cell of the 2 x 2 design with only right or only wrong answers.
    """
    import statsmodels.api as sm

    correct = np.asarray(correct, float)
    for i in (0, 1):
        for j in (0, 1):
            share = correct[(calibration == i) & (language == j)]
            if not len(share) or share.min() == share.max():
                raise ValueError(f"cell {i}, {j} has only one kind of answer: no odds to compare")
    design = np.stack([np.ones(len(correct)), calibration, language, calibration * language], 1)
    fit = sm.GEE(
        correct, design, groups=np.asarray(clusters),
        family=sm.families.Binomial(), cov_struct=sm.cov_struct.Exchangeable(),
    ).fit(cov_type="bias_reduced")  # fmt: skip
    estimate, std_error = float(fit.params[3]), float(fit.bse[3])
    n_clusters = len(np.unique(clusters))
    df = n_clusters - 4
    low, high = clustered.t_interval(estimate, std_error, df, level)
    return LogOdds(
        estimate, std_error, low, high,
        float(2 * special.stdtr(df, -abs(estimate) / std_error)),
        float(np.exp(estimate)), len(correct), n_clusters,
    )  # fmt: skip
