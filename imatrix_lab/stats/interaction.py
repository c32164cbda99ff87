"""Does calibration in a language help that language more than others? Planned contrasts.

The question behind "is the nb imatrix better" is a difference of differences: what nb
calibration gains over en on nb text, less what it gains on en text. And one imatrix is one
sample of its language: how much two samples of one language differ is the measure of noise.
"""

import math
from dataclasses import dataclass

import numpy as np

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

    Raises ValueError: weights that do not sum to 0, or a cell that is empty.
    """
    weights = np.array([c.weight for c in cells])
    if abs(weights.sum()) > 1e-9 * max(np.abs(weights).max(initial=0), 1e-300):
        raise ValueError("the weights of a contrast sum to 0")
    kept = [clustered.checked(c.totals, c.sizes) for c in cells]
    means = np.array([t.sum() / s.sum() for t, s in kept])
    parts = _documents(cells, means)
    samples, n_samples = _samples(cells, means)
    separable = bool(n_samples) and min(n_samples.values()) > 1
    se_documents = sum(v for v, _ in parts) ** 0.5
    if separable:
        parts += samples
    variance = sum(v for v, _ in parts)
    df = _satterthwaite(parts)
    estimate, std_error = float(weights @ means), float(variance**0.5)
    low, high = clustered.t_interval(estimate, std_error, df, level)
    n_clusters = len({name for c in cells for name in c.clusters[c.sizes > 0].tolist()})
    interval = clustered.Interval(estimate, std_error, low, high, 0, n_clusters, df, level)
    return Contrast(
        estimate=estimate,
        std_error=std_error,
        low=low,
        high=high,
        df=df,
        p_value=t_test(interval) if df > 0 else math.nan,
        se_documents=float(se_documents),
        se_samples=float(sum(v for v, _ in samples) ** 0.5) if separable else math.nan,
        separable=separable,
        n_samples=n_samples,
        n=int(sum(s.sum() for _, s in kept)),
        n_clusters=n_clusters,
        level=level,
    )


def _satterthwaite(parts: list[tuple[float, float]]) -> float:
    """Return degrees of freedom of a sum of independent (variance, df)."""
    if any(not df > 0 for _, df in parts):
        return math.nan
    below = sum(v**2 / df for v, df in parts)
    if below == 0:
        return min(df for _, df in parts)
    return float(sum(v for v, _ in parts) ** 2 / below)


def _documents(cells: list[Cell], means: np.ndarray) -> list[tuple[float, float]]:
    """Return (variance, df) for each set of cells that have documents in common."""
    names = [cell.clusters[cell.sizes > 0].tolist() for cell in cells]
    rest = list(range(len(cells)))
    parts = []
    while rest:
        members = [rest.pop(0)]
        documents = set(names[members[0]])
        while joining := [i for i in rest if not documents.isdisjoint(names[i])]:
            members += joining
            documents.update(*(names[i] for i in joining))
            rest = [i for i in rest if i not in joining]
        row = {name: i for i, name in enumerate(sorted(documents))}
        without = np.zeros(len(row))  # the contrast without each document, less the contrast
        for i in members:
            present = cells[i].sizes > 0
            means_without = clustered.jackknife(cells[i].totals[present], cells[i].sizes[present])
            without[[row[name] for name in names[i]]] += cells[i].weight * (
                means_without - means[i]
            )
        # as CV3 of one mean: a contrast that no document changes has variance 0
        variance = (len(row) - 1) / len(row) * float(np.sum(without**2))
        parts.append((variance, float(len(row) - 1)))
    return parts


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
