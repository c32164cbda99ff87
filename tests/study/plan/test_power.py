"""What planned comparisons can find."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from imatrix_lab.core.store import Store
from imatrix_lab.stats import power
from imatrix_lab.stats.power import Design
from imatrix_lab.study.plan.power import CORRELATION, SPREAD, Planned, TextSize, nominal_bits
from imatrix_lab.study.recipe import (
    CalibrationSettings,
    ComparisonSettings,
    Evaluation,
    Recipe,
    Task,
)
from tests.compare.made_up import Text

RECIPE = Recipe(
    1, "x", ("Q4_K_M", "Q3_K_S"),
    CalibrationSettings(("en", "nb", "nb=0.5,en=0.5", "none"), samples=2),
    Evaluation(("en", "nb")),
    comparison=ComparisonSettings(baseline="none", margins={"kld_nats": 0.02}),
)  # fmt: skip
SIZES = [TextSize("en", (300, 340, 280) * 4, True), TextSize("nb", (350,) * 40, False)]


def effects_of(recipe=RECIPE, sizes=SIZES, **rest):
    return list(Planned(recipe, sizes, **rest).effects())


def test_assumed_spreads() -> None:
    effects = effects_of()
    assert [(e.type, e.on) for e in effects] == [
        (kind, text) for kind in RECIPE.types for text in ("en", "nb")
    ]
    first = effects[0]
    mean = 920 / 3
    cv = (sum((n - mean) ** 2 for n in (300, 340, 280)) / 3) ** 0.5 / mean
    design = Design(SPREAD["kld_nats"][4], CORRELATION, mean, cv)
    family = 3 * 2 * 2  # pairs with the baseline, texts, types
    assert first.n_family == family
    assert first.power.detectable == pytest.approx(
        power.detectable(design, 12, alpha=0.05 / family)
    )
    assert first.power.unit == "nats a token" and first.power.margin == 0.02
    assert first.is_blind()
    enough, short = (
        power.design_power(design, n, 0.0, 0.05 / family, 0.02)
        for n in (first.clusters_needed, first.clusters_needed - 1)
    )
    assert enough >= 0.8
    assert (
        short < 0.8
        or power.design_power(design, first.clusters_needed - 1, 0.02, 0.05 / family) < 0.8
    )
    assert effects[1].power.detectable < first.power.detectable  # 40 documents
    assert "40 documents of 350 tokens assumed" in effects[1].power.assumed
    assert effects[2].power.detectable > first.power.detectable  # at 3 bits


@pytest.mark.parametrize(
    "change, family",
    [
        ({"family": "calib"}, 3),
        ({"family": "calibxlang"}, 6),
        ({"family": "calibxtype"}, 6),
        ({"baseline": ""}, 6 * 4),
        ({"baseline": "nb=0.5,en=0.5"}, 12),
    ],
)
def test_families(change: dict, family: int) -> None:
    recipe = replace(RECIPE, comparison=replace(RECIPE.comparison, **change))
    assert {e.n_family for e in effects_of(recipe)} == {family}


def test_without_a_margin_and_with_one_document() -> None:
    plain = replace(RECIPE, comparison=ComparisonSettings())
    first, *_ = effects_of(plain, [TextSize("en", (300,), True)])
    assert math.isnan(first.power.margin) and first.clusters_needed == 0
    assert first.power.detectable == math.inf
    assert not first.is_blind()


def test_earlier_scores_say_how_two_differ(tmp_path) -> None:
    text = Text("en", tokens=300)
    for calibration, spread in (("nb", 0.0), ("en", 0.0), ("", 0.5), ("other", 0.9)):
        path = tmp_path / "score" / f"x{calibration}" / "records.parquet"
        text.write(path, calibration, "Q4_K_M", spread)
    model = SimpleNamespace(sha256="reference")
    effects = effects_of(model=model, store=Store(tmp_path))
    named = {e.power.what: e for e in effects if (e.on, e.type) == ("en", "Q4_K_M")}
    assert set(named) == {
        "en and no imatrix, Q4_K_M on en", "nb and no imatrix, Q4_K_M on en",
        "1 other pairs, Q4_K_M on en",
    }  # fmt: skip
    assert {e.power.assumed for e in effects if (e.on, e.type) != ("en", "Q4_K_M")} == {
        "the spread of the demo model at 4 bits; 40 documents of 350 tokens assumed",
        "the spread of the demo model at 3 bits",
        "the spread of the demo model at 3 bits; 40 documents of 350 tokens assumed",
    }
    widest = max(e.power.detectable for e in named.values())
    assert named["1 other pairs, Q4_K_M on en"].power.detectable == widest
    other = SimpleNamespace(sha256="another")
    assert effects_of(model=other, store=Store(tmp_path))[0].power.assumed.startswith("the spread")


def test_tasks() -> None:
    tasks = (Task("xnli", ("en", "fr"), 200), Task("mixeval", ("en",)))
    recipe = replace(
        RECIPE, evaluation=Evaluation(), tasks=tasks, types=("Q4_K_M",),
        comparison=ComparisonSettings(margins={"score": 1.5}),
    )  # fmt: skip
    xnli, french, mixeval = effects_of(recipe, [])
    assert (xnli.on, french.on, mixeval.on) == ("xnli en", "xnli fr", "mixeval en")
    assert (xnli.clusters, xnli.n_family, mixeval.n_family) == (200, 12, 6)
    alone = power.binary_design(0.05)
    assert xnli.power.detectable == pytest.approx(
        100 * power.detectable(alone, 200, alpha=0.05 / 12)
    )
    assert xnli.power.unit == "points" and xnli.is_blind()
    assert mixeval.power.detectable < xnli.power.detectable


def test_nominal_bits() -> None:
    kinds = ("Q8_0", "Q4_K_M", "IQ3_XXS", "Q2_K", "IQ1_S", "BF16", "MXFP4_MOE")
    assert [nominal_bits(k) for k in kinds] == [4, 4, 3, 2, 2, 4, 4]


def test_nominal_bits_of_sizes_and_quantizers() -> None:
    known = {"size:Q3_K_S": 3, "size:Q2_K+feedback": 2, "Q3_K_S+awq": 3, "size:3.5GiB": 4}
    assert {kind: nominal_bits(kind) for kind in known} == known
