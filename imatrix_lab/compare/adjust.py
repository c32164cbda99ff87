"""Raw and adjusted p values, side by side."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from imatrix_lab.compare.design import Plan
from imatrix_lab.compare.interactions import Interaction
from imatrix_lab.stats import multiplicity
from imatrix_lab.stats.comparison import Comparison


def adjusted(
    found: Sequence[Comparison],
    totals: Sequence[dict[str, float]],
    crossed: Sequence[Interaction],
    plan: Plan,
) -> tuple[list[Comparison], list[Interaction]]:
    """Return comparisons and interactions with adjusted p beside the raw ones.

    Holm and max-T within each family and metric, interactions a family of their own;
    Benjamini-Hochberg over all comparisons and interactions of a metric. Max-T is left out where
    calibration samples are repeated: flipping documents says nothing about samples.

    Parameters
    ----------
    totals : for each comparison, the sum of differences of each document.
    """
    result = list(found)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, c in enumerate(found):
        groups.setdefault((c.family, c.question.metric.key), []).append(i)
    for members in groups.values():
        p = np.array([found[i].p_value for i in members])
        p_holm = multiplicity.holm(p)
        equal = np.array([found[i].p_equivalence for i in members])
        p_equal = (multiplicity.benjamini_hochberg if plan.adjust == "bh" else multiplicity.holm)(
            equal
        )
        p_max = np.full(len(members), np.nan)
        if all(found[i].method in ("cr3", "permutation") for i in members):
            p_max = _max_t([totals[i] for i in members], plan)
        for place, i in enumerate(members):
            result[i] = replace(
                found[i],
                n_family=len(members),
                adjust=plan.adjust,
                p_holm=float(p_holm[place]),
                p_max_t=float(p_max[place]),
                p_equivalence_adjusted=(
                    float("nan") if plan.adjust == "none" else float(p_equal[place])
                ),
            )
    return _explored(result, list(crossed))


def _max_t(totals: Sequence[dict[str, float]], plan: Plan) -> np.ndarray:
    names = {n: i for i, n in enumerate(dict.fromkeys(n for t in totals for n in t))}
    columns = np.zeros((len(names), len(totals)))
    for j, one in enumerate(totals):
        columns[[names[n] for n in one], j] = list(one.values())
    return multiplicity.max_t(columns, np.random.default_rng(plan.seed), plan.n_resamples)


def _explored(
    found: list[Comparison], crossed: list[Interaction]
) -> tuple[list[Comparison], list[Interaction]]:
    """Add Benjamini-Hochberg over everything of a metric, and Holm over its interactions."""
    for metric in dict.fromkeys(c.question.metric.key for c in found):
        mine = [i for i, c in enumerate(found) if c.question.metric.key == metric]
        theirs = [i for i, x in enumerate(crossed) if x.metric == metric]
        p = np.array(
            [found[i].p_value for i in mine] + [crossed[i].contrast.p_value for i in theirs]
        )
        q = multiplicity.benjamini_hochberg(p)
        p_holm = multiplicity.holm(p[len(mine) :])
        for place, i in enumerate(mine):
            found[i] = replace(found[i], q_bh=float(q[place]))
        for place, i in enumerate(theirs):
            crossed[i] = replace(
                crossed[i], p_holm=float(p_holm[place]), q_bh=float(q[len(mine) + place])
            )
    return found, crossed
