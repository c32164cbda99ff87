"""p values adjusted for many comparisons: Holm, max-T, Benjamini-Hochberg."""

import numpy as np

from imatrix_lab.stats import resample


def holm(p: np.ndarray) -> np.ndarray:
    """Return p adjusted for a family: any false discovery has at most probability alpha.

    Holm (1979, Scand. J. Statistics 6:65). Needs no assumption on how the tests depend. NaN stays
    NaN and is not counted.
    """
    return _adjusted(p, "holm")


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return q values: the expected share of false ones among the discoveries is below alpha.

    Benjamini & Hochberg (1995, JRSS B 57:289), for exploring: no claim about any single one.
    Assumes independent or positively dependent tests. NaN stays NaN and is not counted.
    """
    return _adjusted(p, "fdr_bh")


def _adjusted(p: np.ndarray, method: str) -> np.ndarray:
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p, float)
    adjusted, finite = np.full(p.shape, np.nan), np.isfinite(p)
    if finite.any():
        adjusted[finite] = multipletests(p[finite], method=method)[1]
    return adjusted


def max_t(totals: np.ndarray, rng: np.random.Generator, n_resamples: int = 10_000) -> np.ndarray:
    """Return step-down max-T adjusted p of many paired differences on shared clusters.

    Westfall & Young (1993), algorithm 4.1, with sign flips of whole clusters: one flip for all
    comparisons at once, which keeps their correlation, so that a grid of similar tests costs less
    than Holm's worst case. The statistic of comparison h is |Σ_g d_gh| / sqrt(Σ_g d_gh²), whose
    denominator no flip changes. Controls the family-wise error, exactly where swapping the runs
    changes nothing under the nulls. No p can fall below 2^(1-G).

    `totals`: (G, m), sum of differences of each cluster in each comparison; 0 where a cluster is
        not part of one. A comparison in which nothing differs gets p = 1.
    """
    totals = np.asarray(totals, float)
    scale = np.sqrt(np.sum(totals**2, axis=0))
    scale[scale == 0] = np.inf
    scaled = totals / scale
    observed = np.abs(scaled.sum(axis=0))
    order = np.argsort(-observed, kind="stable")
    flipped, exact = resample.flipped_sums(scaled[:, order], n_resamples, rng)
    np.abs(flipped, out=flipped)
    # the largest among this comparison and all with a smaller statistic
    largest = np.maximum.accumulate(flipped[:, ::-1], axis=1)[:, ::-1]
    hits = np.count_nonzero(largest >= observed[order] - 1e-10, axis=0)
    p = hits / len(flipped) if exact else (1 + hits) / (1 + len(flipped))
    adjusted = np.empty(len(observed))
    adjusted[order] = np.maximum.accumulate(p)
    return adjusted
