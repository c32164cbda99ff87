"""Which comparisons a plan means."""

import pytest

from imatrix_lab.compare import design
from imatrix_lab.compare.design import ComparisonPlan, Level
from imatrix_lab.errors import UsageError


@pytest.mark.parametrize("text", ["calib×lang×type", "calibxlangxtype", "calib,lang,type"])
def test_factors(text):
    assert design.parse_family(text) == ("calib", "lang", "type")


@pytest.mark.parametrize("text", ["", "calibxcalib", "color", "lang", "langxcalib"])
def test_no_family(text):
    with pytest.raises(UsageError):
        design.parse_family(text)


LEVELS = [Level(c, t, "nb", (0,)) for c in ("no imatrix", "nb", "en") for t in ("Q3", "Q4")]


def names(plan):
    return [(a.name(), b.name()) for a, b in design.pairs(LEVELS, plan)]


def test_pairs_differ_in_one_factor():
    assert len(names(ComparisonPlan(family=("calib", "lang")))) == 6
    assert names(ComparisonPlan(family=("type",))) == [
        (f"{c} Q3", f"{c} Q4") for c in ("no imatrix", "nb", "en")
    ]


def test_a_baseline_is_always_b():
    pairs = names(ComparisonPlan(family=("calib",), baseline="nb"))
    assert pairs == [
        ("no imatrix Q3", "nb Q3"),
        ("no imatrix Q4", "nb Q4"),
        ("en Q3", "nb Q3"),
        ("en Q4", "nb Q4"),
    ]
    with pytest.raises(UsageError, match="no run with calib xx"):
        names(ComparisonPlan(family=("calib",), baseline="xx"))


def test_a_factor_not_named_splits_families():
    plan = ComparisonPlan(family=("calib", "lang"))
    assert design.family_of(LEVELS[0], LEVELS[0], "", plan) == "calib×lang Q3"
    assert design.family_of(LEVELS[1], LEVELS[1], "mixeval", plan) == "calib×lang Q4 mixeval"
    whole = ComparisonPlan(family=design.FACTORS)
    assert design.family_of(LEVELS[0], LEVELS[0], "", whole) == "calib×lang×type"


def test_names_with_spaces_are_quoted():
    name = "nb PyPI: dataset-build 0"
    levels = [Level(name, "Q4_K_M", "nb", (0,)), Level("en", "Q4_K_M", "nb", (1,))]
    with pytest.raises(UsageError) as error:
        design.pairs(levels, ComparisonPlan(family=("calib",), baseline="nb"))
    assert error.value.fix == f"--baseline, one of: en, '{name}'"
