"""What only the stages know of a recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from imatrix_lab.errors import UsageError
from imatrix_lab.study import tasks, validate
from imatrix_lab.study.calibrations import mixtures
from imatrix_lab.study.recipe import (
    CalibrationSettings,
    ComparisonSettings,
    Evaluation,
    Limits,
    Recipe,
    Task,
)

GOOD = Recipe(
    1, "x", ("Q4_K_M",),
    CalibrationSettings(("en", "nb", "nb=0.5,en=0.5", "shuffled:nb", "none"), 2048, 2),
    Evaluation(("nb",)), tasks=(Task("xnli"),), limits=Limits(backend="cpu"),
)  # fmt: skip


def test_a_good_one() -> None:
    validate.check(GOOD)
    assert tasks.languages_of(GOOD.tasks[0], GOOD) == ("en",)  # xnli has no nb
    assert [m.label for m in mixtures(GOOD).values()] == [
        "en", "nb", "nb50-en50", "shuffled-nb"
    ]  # fmt: skip


def calibration(**change: object) -> dict[str, object]:
    return {"calibration": replace(GOOD.calibration, **change)}


@pytest.mark.parametrize(
    "change, message",
    [
        (calibration(texts=("en", "nbb")), "'nbb'"),
        (calibration(texts=("nb=0.5,en=0.5", "nb=1,en=1")), "'nb=0.5,en=0.5' and 'nb=1,en=1'"),
        (calibration(texts=("nb=0.5,en=-1",)), "the share of en"),
        (calibration(merge_by="enrgy"), "merge_by: no 'enrgy'; 'energy'?"),
        (calibration(pooled=True, samples=1), "calibration.pooled"),
        ({"evaluation": Evaluation(("nb",), protocol="x")}, "evaluation.protocol: no 'x'"),
        ({"evaluation": Evaluation(("mine=gone.jsonl",))}, "gone"),
        ({"models": ("gone.gguf",)}, "gone"),
        ({"comparison": ComparisonSettings(family="langxcalib")}, "calib"),
        ({"comparison": ComparisonSettings(family="typexlang")}, "'typexlang'"),
        ({"comparison": ComparisonSettings(family="x")}, "'x'"),
        ({"comparison": ComparisonSettings(adjust="holmes")}, "adjust: no 'holmes'; 'holm'?"),
        ({"comparison": ComparisonSettings(metrics=("kld",))}, "metrics: no 'kld'"),
        ({"comparison": ComparisonSettings(metrics=("score",))}, "metrics: no 'score'"),
        ({"comparison": ComparisonSettings(margins={"kld_nat": 1.0})}, "no 'kld_nat'; 'kld_nats'?"),
        ({"comparison": ComparisonSettings(baseline="ml")}, "comparison.baseline: 'ml'"),
        ({"quantizers": ("gptq",)}, "quantizers: no 'gptq'"),
        ({"quantizers": ("imatrix", "feedback"), "types": ("IQ2_XXS",)}, "IQ2_XXS"),
        ({"quantizers": ("feedback",)}, "'none' is llama-quantize without an imatrix"),
        ({"quantizers": ("imatrix", "feedback"), "comparison": ComparisonSettings(baseline="none")},
         "feedback takes a calibration text"),
        ({"types": ("size:Q4_K_M",), **calibration(texts=("none", "en"))},
         "size:Q4_K_M takes a calibration text"),
        ({"types": ("size:F16",)}, "F16 is not quantized"),
        ({"limits": Limits(backend="cuda9")}, "backend: no 'cuda9'; 'cuda'?"),
        ({"tasks": (Task("xnlii"),)}, "'xnlii'; 'xnli'?"),
        ({"tasks": (Task("xnli", ("nb",)),)}, "xnli .*'nb'"),
        ({"tasks": (Task("xnli", data="gone"),)}, "gone"),
        ({"tasks": (Task("xnli", variant="bite"),)}, "variant: no 'bite'; 'byte'?"),
        ({"tasks": (Task("xnli", ("en", "zh")), Task("xnli", ("zh",), 5))},
         "tasks: xnli .* 'zh'"),
        ({"tasks": (Task("xnli", ("en", "en")),)}, "tasks: xnli .* 'en'"),
        ({"tasks": (Task("norcommonsenseqa"),), **calibration(texts=("ml",))},
         "norcommonsenseqa"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_out(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        validate.check(replace(GOOD, **change))


def test_sizes_and_quantizers_beside_a_quant_without_an_imatrix() -> None:
    validate.check(
        replace(GOOD, types=("Q4_K_M", "size:Q4_K_M"), quantizers=("imatrix", "feedback"))
    )


def test_margins_of_items_and_a_baseline(tmp_path: Path) -> None:
    own = tmp_path / "a.jsonl"
    own.touch()
    validate.check(
        replace(
            GOOD,
            comparison=ComparisonSettings(
                baseline="none", margins={"score": 1.5, "kld_nats": 0.01}
            ),
            evaluation=Evaluation((f"mine={own}",)),
        )
    )
