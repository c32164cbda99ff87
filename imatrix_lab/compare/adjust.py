"""Raw and adjusted p values, side by side."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from imatrix_lab.compare.design import ComparisonPlan
from imatrix_lab.compare.interactions import Interaction, TypeInteraction
from imatrix_lab.stats import multiplicity
from imatrix_lab.stats.comparison import Comparison


def adjusted(
    comparisons: Sequence[Comparison],
    totals: Sequence[dict[str, float]],
    interactions: Sequence[Interaction],
    plan: ComparisonPlan,
) -> tuple[list[Comparison], list[Interaction]]:
    """Return comparisons and interactions with adjusted p beside the raw ones.

    Holm and max-T within each family and metric, interactions a family of their own;
    Benjamini-Hochberg over all comparisons and interactions of a metric. Max-T is left out where
    calibration samples are repeated: flipping documents does not account for samples.

    `totals`: for each comparison, the sum of differences of each document.
    """
    result = list(comparisons)
    families: dict[tuple[str, str], list[int]] = {}
    for i, c in enumerate(comparisons):
        families.setdefault((c.family, c.question.metric.key), []).append(i)
    for members in families.values():
        p_holm = multiplicity.holm(np.array([comparisons[i].p_value for i in members]))
        p_equal = np.array([comparisons[i].p_equivalence for i in members])
        if plan.adjust == "none":
            p_equal[:] = math.nan
        elif plan.adjust == "bh":
            p_equal = multiplicity.benjamini_hochberg(p_equal)
        else:
            p_equal = multiplicity.holm(p_equal)
        p_max = np.full(len(members), math.nan)
        if all(comparisons[i].method == "permutation" for i in members):
            p_max = _max_t([totals[i] for i in members], plan)
        for place, i in enumerate(members):
            result[i] = replace(
                comparisons[i],
                n_family=len(members),
                adjust=plan.adjust,
                p_holm=float(p_holm[place]),
                p_max_t=float(p_max[place]),
                p_equivalence_adjusted=float(p_equal[place]),
            )
    return _over_everything(result, list(interactions))


def holm_of(interactions: Sequence[TypeInteraction]) -> list[TypeInteraction]:
    """Return interactions with adjusted p: over texts and calibrations, and apart for means."""
    families: dict[tuple[str, bool], list[int]] = {}
    for i, x in enumerate(interactions):
        families.setdefault((x.metric, bool(x.text)), []).append(i)
    result = list(interactions)
    for members in families.values():
        p_holm = multiplicity.holm(np.array([interactions[i].contrast.p_value for i in members]))
        for i, p in zip(members, p_holm.tolist(), strict=True):
            result[i] = replace(interactions[i], p_holm=p)
    return result


def _max_t(totals: Sequence[dict[str, float]], plan: ComparisonPlan) -> np.ndarray:
    row = {n: i for i, n in enumerate(dict.fromkeys(n for t in totals for n in t))}
    table = np.zeros((len(row), len(totals)))
    for column, by_document in enumerate(totals):
        table[[row[n] for n in by_document], column] = list(by_document.values())
    return multiplicity.max_t(table, np.random.default_rng(plan.seed), plan.n_resamples)


def _over_everything(
    comparisons: list[Comparison], interactions: list[Interaction]
) -> tuple[list[Comparison], list[Interaction]]:
    """Add Benjamini-Hochberg over everything of a metric, and Holm over its interactions."""
    for metric in dict.fromkeys(c.question.metric.key for c in comparisons):
        simple = [i for i, c in enumerate(comparisons) if c.question.metric.key == metric]
        crossed = [i for i, x in enumerate(interactions) if x.metric == metric]
        p = [comparisons[i].p_value for i in simple]
        p_crossed = [interactions[i].contrast.p_value for i in crossed]
        q = multiplicity.benjamini_hochberg(np.array(p + p_crossed)).tolist()
        p_holm = multiplicity.holm(np.array(p_crossed)).tolist()
        for i, q_bh in zip(simple, q[: len(simple)], strict=True):
            comparisons[i] = replace(comparisons[i], q_bh=q_bh)
        for i, p_i, q_bh in zip(crossed, p_holm, q[len(simple) :], strict=True):
            interactions[i] = replace(interactions[i], p_holm=p_i, q_bh=q_bh)
    return comparisons, interactions
