"""The three sentences say what the verdicts say, and no more: golden texts, case by case."""

import dataclasses
import math
import re

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.report.results import ALL_SAMPLES, Calibration, Comparison, Control, Missing, Score
from imatrix_lab.study.analyse.assemble import assemble
from imatrix_lab.study.analyse.conclusion import answer
from tests.study import scored

NAMES = {"en": "English", "nb": "Norwegian Bokmål", "ml": "Malayalam"}
SIGNS = {"better": -1, "worse": 1, "equivalent": 0, "undecided": 0}


@pytest.fixture(scope="module")
def empty():
    nothing = assemble(scored.products(quants=()), Silent())
    return dataclasses.replace(
        nothing,
        languages={code: {"name": name} for code, name in NAMES.items()},
        calibrations=tuple(
            Calibration("demo", code, name, "language", 1, {code: 1.0}, 9, "", "", "", "")
            for code, name in NAMES.items()
        ),
    )  # fmt: skip


def case(verdict, text="nb", kind="Q3_K_S", size=0.08, task="", a="", noise=math.nan, **changes):
    """The imatrix of a text's own language against English."""
    estimate = size * SIGNS[verdict] * (-1 if task else 1)
    half = size / 4
    facts = {
        "model": "demo", "text": text, "task": task, "type": kind,
        "metric": "score" if task else "kld_nats",
        "words": "score" if task else "KLD from the original",
        "unit": "points" if task else "nats a token", "lower_is_better": not task,
        "a": a or text, "b": "en", "estimate": estimate, "low": estimate - half,
        "high": estimate + half, "p_value": 0.01, "p_adjusted": 0.02, "adjust": "holm",
        "family": "calib×lang×type", "n_family": 4, "verdict": verdict, "margin": 0.005,
        "p_equivalence": 0.5, "detectable": 0.03, "noise": noise,
        "noise_multiple": abs(estimate) / noise, "n": 1000, "n_clusters": 12, "n_to_decide": 0,
        "clusters_to_decide": 0, "plain": "", "formal": "", "signatures": (),
    }  # fmt: skip
    return Comparison(**{**facts, **changes})


def none_against(text="nb", kind="Q3_K_S", low=0.1, high=0.3, metric="kld_nats", task=""):
    """The positive control."""
    return Control("demo", f"no imatrix against {text}", "worse", text, task, kind, metric, "",
                   (low + high) / 2, low, high, math.nan)  # fmt: skip


def loss_without(text="nb", kind="Q3_K_S", kld=0.4):
    """The divergence of a quant without an imatrix."""
    return Score("demo", text, "", "no imatrix", ALL_SAMPLES, kind, "kld_nats", "", "", kld, kld,
                 kld, 9, 9, ())  # fmt: skip


def sentences(empty, *comparisons, **changes):
    return answer(dataclasses.replace(empty, comparisons=comparisons, **changes))


TEXTS = (
    ("nb", "Q3_K_S", 0.08),
    ("nb", "Q4_K_M", 0.02),
    ("ml", "Q3_K_S", 0.4),
    ("ml", "Q4_K_M", 0.1),
)
MODELS = {"demo": {"origin": "demo"}, "big": {"origin": "hf:org/big"}}
SEEN, UNSEEN = none_against(), none_against("ml", low=-0.1)
LOST = Missing("imatrix ml.1", "no text", "", ("quant ml.1 Q4_K_M", "score ml"))
CODES = [f"x{i}" for i in range(9)]
MANY = tuple(Calibration("demo", c, c, "language", 1, {}, 9, "", "", "", "") for c in CODES)
NAN = {"low": math.nan, "high": math.nan}
CASES = {
    "nothing": ([], {}),
    **{verdict: ([case(verdict)], {}) for verdict in SIGNS},
    **{f"all {v}": ([case(v, *place) for place in TEXTS], {}) for v in SIGNS},
    "with a share of the loss": ([case("better")], {"scores": (loss_without(),)}),
    "mixed": ([case("better"), case("worse", "ml"), case("undecided", "ml", "Q4_K_M")], {}),
    "better in some, unknown in others": (
        [case("better"), case("undecided", "ml"), case("equivalent", "ml", "Q6_K")], {},
    ),
    "no calibration of the text's language": (
        [case("better", a="ml"), case("undecided", "ml", a="nb")], {},
    ),
    "no imatrix as baseline": ([case("better", b="no imatrix")], {"baseline": "no imatrix"}),
    "a mixture as baseline": (
        [case("better", b="nb50-en50")], {"baseline": "nb50-en50", "languages": {}},
    ),
    "two models": ([case("better"), case("undecided", model="big")], {"models": MODELS}),
    "tasks alone": (
        [case("better", task="exam", size=8.0), case("better", "ml", task="exam", size=4.0)],
        {"controls": (none_against(low=-5.0, high=-1.0, metric="score", task="exam"),)},
    ),
    "texts and tasks": (
        [case("better"), case("worse", task="exam"), case("undecided", "ml", task="exam")], {},
    ),
    "many": ([case("equivalent", code) for code in CODES], {"calibrations": MANY}),
    "noise": ([case("better", noise=0.02)], {}),
    "noises": ([case("better", noise=0.02), case("better", "ml", noise=0.1)], {}),
    "positive control": ([case("better")], {"controls": (SEEN,)}),
    "positive control in one of two": ([case("better")], {"controls": (SEEN, UNSEEN)}),
    "positive control fails": ([case("better")], {"controls": (UNSEEN,)}),
    "demo model": ([case("undecided")], {"models": {"demo": MODELS["demo"]}}),
    "another model": ([case("better")], {"models": {"big": MODELS["big"]}}),
    "no margin, no interval": ([case("undecided", margin=math.nan, **NAN)], {}),
    "no interval": ([case("undecided", **NAN)], {}),
    "few documents": ([case("better"), case("better", "ml", n_clusters=5)], {}),
    "missing": ([case("better")], {"missing": (LOST,)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sentences(empty, golden, name):
    comparisons, changes = CASES[name]
    text = sentences(empty, *comparisons, **changes)
    assert len(text) == 3
    for sentence in text:
        assert re.fullmatch(r"[A-Z][^\n]*\.", sentence)
        assert not re.search(r"nan|inf\b|  |\.\.|;\.|\(\)", sentence)
    golden("answer", "\n".join(text))


def test_only_own_language_and_deciding_metric_count(empty):
    others = (
        case("worse", a="ml"), case("worse", b="ml"), case("worse", metric="nll_nats"),
        case("worse", "nb50-en50"),
    )  # fmt: skip
    alone = sentences(empty, case("better"))
    assert sentences(empty, case("better"), *others)[0] == alone[0]
