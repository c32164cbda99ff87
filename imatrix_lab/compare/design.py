"""What was planned: the factors of a grid, the pairs compared, and the families they form."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imatrix_lab.errors import UsageError

if TYPE_CHECKING:  # which loads numpy, and -h does without
    from imatrix_lab.records.runs import Run

FACTORS = ("calib", "lang", "type")
ADJUSTMENTS = ("holm", "max-t", "bh", "none")


@dataclass(frozen=True)
class ComparisonPlan:
    """What was decided before the data were seen.

    Attributes
    ----------
    margins : smallest difference that matters, by metric, in stored units.
    family : the factor that is compared, then those whose levels share one adjustment; a factor
        not named splits the comparisons into families of their own. Empty: two runs.
    baseline : compare every level with this one only; "" for all pairs.
    adjust : which adjusted p decides: holm, max-t, bh or none.
    any_size : compare files of different sizes too.
    types : pairs (A, B) of types that are compared with each other too, with each calibration, if
        their files are of one size; and by how much more a calibration changes A than B.
    reference : the calibration that those changes are from.
    """

    margins: Mapping[str, float] = field(default_factory=dict)
    family: tuple[str, ...] = ()
    baseline: str = ""
    adjust: str = "holm"
    n_resamples: int = 10_000
    seed: int = 1
    any_size: bool = False
    types: tuple[tuple[str, str], ...] = ()
    reference: str = ""


def parse_family(text: str) -> tuple[str, ...]:
    """Return the factors of e.g. ``calib×lang×type``.

    Raises UsageError: an unknown factor, one twice, or one that cannot be compared.
    """
    words = tuple(text.replace("×", " ").replace("*", " ").replace(",", " ").split())
    if len(words) == 1 and words[0] not in FACTORS:
        words = tuple(words[0].split("x"))
    if not words or len(set(words)) < len(words) or not set(words) <= set(FACTORS):
        raise UsageError(
            f"unknown family {text!r}: factors are calib, lang and type, each once",
            fix="--family calibxlangxtype",
        )
    if words[0] == "lang":
        raise UsageError(
            "languages cannot be compared with each other: their texts are different tokens",
            fix="--family calibxlang",
        )
    return words


@dataclass(frozen=True)
class Level:
    """One level of the design on one text: a run, or several calibration samples.

    Attributes
    ----------
    runs : places in the list of runs.
    label : name in sentences where calibration and type do not tell two runs apart.
    """

    calib: str
    type: str
    text: str
    runs: tuple[int, ...]
    label: str = ""

    def factor(self, name: str) -> str:
        """Return the level of a factor."""
        return {"calib": self.calib, "lang": self.text, "type": self.type}[name]

    def name(self) -> str:
        """Return the level in words."""
        return self.label or f"{self.calib} {self.type}"


def levels(runs: Mapping[int, Run], text: str) -> list[Level]:
    """Return the levels among runs on one text.

    Raises UsageError: one quant scored twice, which would count as two samples.
    """
    members: dict[tuple[str, str], list[int]] = {}
    quants: dict[str, Run] = {}
    for i, run in runs.items():
        twin = quants.setdefault(run.signature["quant"]["sha256"], run)
        if twin is not run:
            raise UsageError(
                f"the same quant twice on {text}", where=run.path, fix=f"leave out {twin.path}"
            )
        members.setdefault((run.calib, run.type), []).append(i)
    return [Level(*key, text, tuple(indices)) for key, indices in members.items()]


def pairs(levels: Sequence[Level], plan: ComparisonPlan) -> list[tuple[Level, Level]]:
    """Return the pairs of levels of one text that a family compares.

    Raises UsageError: no level is the baseline.
    """
    factor = plan.family[0]
    names = {x.factor(factor) for x in levels}
    if plan.baseline and plan.baseline not in names:
        raise UsageError(
            f"no run with {factor} {plan.baseline}",
            fix=f"--baseline, one of: {', '.join(map(shlex.quote, sorted(names)))}",
        )
    result = []
    for a, b in itertools.combinations(levels, 2):
        if all(a.factor(f) == b.factor(f) for f in FACTORS if f != factor):
            pair = (b, a) if a.factor(factor) == plan.baseline else (a, b)
            if plan.baseline in ("", pair[1].factor(factor)):
                result.append(pair)
    return result


def type_pairs(levels: Sequence[Level], plan: ComparisonPlan) -> list[tuple[Level, Level]]:
    """Return the pairs of levels of one text that differ in type as planned."""
    by_name = {(x.calib, x.type): x for x in levels}
    pairs = itertools.product(dict.fromkeys(x.calib for x in levels), plan.types)
    names = (((calib, a), (calib, b)) for calib, (a, b) in pairs)
    return [(by_name[a], by_name[b]) for a, b in names if {a, b} <= by_name.keys()]


def family_of(a: Level, b: Level, task: str, plan: ComparisonPlan) -> str:
    """Return the name of the family a pair belongs to: the levels it does not run over.

    Pairs of `plan.types` have families of their own, which run over as many factors.
    """
    fixed = {f: a.factor(f) for f in FACTORS if f not in plan.family}
    factors = plan.family
    if a.type != b.type and factors[0] == "calib":
        factors = ("type", *(f for f in factors if f != "type"))
        fixed |= {"type": f"{a.type} against {b.type}"} if "type" in fixed else {}
    return " ".join(filter(None, ["×".join(factors), *fixed.values(), task]))
