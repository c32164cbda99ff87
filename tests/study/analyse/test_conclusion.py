"""The three sentences say what the verdicts say, and no more."""

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
    found = assemble(scored.made(quants=()), Silent())
    return dataclasses.replace(
        found,
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


def said(found, *comparisons, **changes):
    return answer(dataclasses.replace(found, comparisons=comparisons, **changes))


def test_three_sentences_each_with_an_end(empty):
    for cases in ([], [case("better")], [case("better"), case("worse", "ml")]):
        sentences = said(empty, *cases)
        assert len(sentences) == 3
        for text in sentences:
            assert re.fullmatch(r"[A-Z][^\n]*\.", text)
            assert not re.search(r"nan|inf\b|  |\.\.|;\.|\(\)", text), text


# -- does it help


def test_one_case_is_better_by_so_much(empty):
    first, *_ = said(empty, case("better"), scores=(loss_without(),))
    assert first == (
        "An imatrix of Norwegian Bokmål text is better than an imatrix of English text on"
        " Norwegian Bokmål at Q3_K_S: its KLD from the original is 0.080 nats a token lower"
        " (95 % sure: 0.060 to 0.100; 20 % of the loss without an imatrix)."
    )
    without = said(empty, case("better"))[0]
    assert "%" not in without.replace("95 %", "")


def test_worse_is_said_as_plainly(empty):
    first = said(empty, case("worse"))[0]
    assert "is worse than an imatrix of English text" in first
    assert "0.080 nats a token higher" in first


def test_equivalent_names_the_margin(empty):
    first = said(empty, case("equivalent"))[0]
    assert "are equivalent on Norwegian Bokmål at Q3_K_S" in first
    assert "less than the 0.005 nats a token that were declared to matter" in first
    assert "better" not in first


def test_undecided_says_how_far_it_may_be_either_way(empty):
    first = said(empty, case("undecided"))[0]
    assert "cannot be told" in first
    assert "from 0.020 nats a token lower to 0.020 nats a token higher" in first


@pytest.mark.parametrize("verdict", SIGNS)
def test_all_cases_alike(empty, verdict):
    cases = [case(verdict, text, kind, size)
             for text, kind, size in (("nb", "Q3_K_S", 0.08), ("nb", "Q4_K_M", 0.02),
                                      ("ml", "Q3_K_S", 0.4), ("ml", "Q4_K_M", 0.1))]  # fmt: skip
    first = said(empty, *cases)[0]
    many = "any of 4" if verdict == "undecided" else "all 4"
    assert f"{many} cases (Norwegian Bokmål and Malayalam at Q3_K_S and Q4_K_M)" in first
    if verdict in ("better", "worse"):
        direction = "lower" if verdict == "better" else "higher"
        assert f"is {verdict} than an imatrix of English text" in first
        assert f"0.0200 nats a token {direction} (Norwegian Bokmål at Q4_K_M;" in first
        assert f"to 0.400 nats a token {direction} (Malayalam at Q3_K_S;" in first
    elif verdict == "equivalent":
        assert "are equivalent" in first
    else:
        assert "cannot be told" in first
        assert "from 0.100 nats a token lower to 0.100 nats a token higher" in first


def test_mixed_over_languages(empty):
    first = said(empty, case("better"), case("worse", "ml"), case("undecided", "ml", "Q4_K_M"))[0]
    assert first.startswith("It depends: against an imatrix of English text,")
    assert "of 3 cases, better in 1 (Norwegian Bokmål at Q3_K_S)" in first
    assert "worse in 1 (Malayalam at Q3_K_S) and undecided in 1 (Malayalam at Q4_K_M)" in first
    assert "; where better, its KLD from the original is 0.080 nats a token lower" in first
    assert "; where worse, its KLD from the original is 0.080 nats a token higher" in first


def test_better_in_some_and_untold_in_others_is_no_contradiction(empty):
    first = said(empty, case("better"), case("undecided", "ml"), case("equivalent", "ml", "Q6_K"))[
        0
    ]
    assert first.startswith("Against an imatrix of English text,")
    assert "better in 1 (" in first
    assert "equivalent in 1 (Malayalam at Q6_K) and undecided in 1" in first


def test_only_own_language_and_deciding_metric_count(empty):
    others = (
        case("worse", a="ml"), case("worse", b="ml"), case("worse", metric="nll_nats"),
        case("worse", "nb50-en50"),
    )  # fmt: skip
    assert said(empty, case("better"), *others)[0] == said(empty, case("better"))[0]


def test_no_calibration_of_the_texts_language(empty):
    first = said(empty, case("better", a="ml"), case("undecided", "ml", a="nb"))[0]
    assert "was not asked, or could not be compared" in first
    assert "better in 1 and undecided in 1 of 2 cases" in first
    assert "so there is no answer" in said(empty)[0]


def test_no_imatrix_as_baseline(empty):
    c = case("better", b="no imatrix")
    first = said(empty, c, baseline="no imatrix")[0]
    assert "is better than no imatrix on Norwegian Bokmål at Q3_K_S" in first


def test_a_text_of_ones_own_name_and_a_mixture_as_baseline(empty):
    c = case("better", b="nb50-en50")
    first = said(empty, c, baseline="nb50-en50", languages={})[0]
    assert "The imatrix nb is better than the imatrix nb50-en50 on nb at Q3_K_S" in first


def test_two_models_are_told_apart(empty):
    models = {"demo": {"origin": "demo"}, "big": {"origin": "hf:org/big"}}
    cases = case("better"), case("undecided", model="big")
    first, _, last = said(empty, *cases, models=models)
    assert "(Norwegian Bokmål at Q3_K_S of demo)" in first
    assert "undecided in 1 (Norwegian Bokmål at Q3_K_S of big)" in first
    assert "2 models (demo, a stand-in that was quantized once before)" in last


def test_tasks_alone_decide_where_there_are_no_texts(empty):
    cases = case("better", task="exam", size=8.0), case("better", "ml", task="exam", size=4.0)
    first, second, _ = said(
        empty, *cases, controls=(none_against(low=-5.0, high=-1.0, metric="score", task="exam"),)
    )
    assert "its score is 4.00 points higher (exam in Malayalam at Q3_K_S;" in first
    assert "to 8.0 points higher (exam in Norwegian Bokmål at Q3_K_S;" in first
    assert "in both cases" in first
    assert second.endswith("worse for sure.")


def test_tasks_are_counted_beside_texts(empty):
    tasks = case("worse", task="exam"), case("undecided", "ml", task="exam")
    first = said(empty, case("better"), *tasks)[0]
    assert first.endswith("; in answers to tasks it is worse in 1 and undecided in 1 of 2 cases.")


def test_many_cases_are_cut_short(empty):
    codes = [f"x{i}" for i in range(9)]
    made = tuple(
        Calibration("demo", c, c, "language", 1, {}, 9, "", "", "", "") for c in codes
    )  # fmt: skip
    first = said(empty, *(case("equivalent", c) for c in codes), calibrations=made)[0]
    assert "all 9 cases (x0, x1, x2, x3 and 5 more at Q3_K_S)" in first


# -- beside what


def test_the_effect_beside_the_noise(empty):
    second = said(empty, case("better", noise=0.02))[1]
    assert second.startswith("The difference is 4 times what two calibration texts of one language")
    assert "noise" not in second
    many = case("better", noise=0.02), case("better", "ml", noise=0.1)
    second = said(empty, *many)[1]
    assert "The differences are 0.8 to 4 times" in second


def test_one_sample_may_be_the_text_and_not_the_language(empty):
    second = said(empty, case("better"))[1]
    assert "was not measured" in second
    assert "due to the very texts" in second


def test_the_positive_control(empty):
    seen, unseen = none_against(), none_against("ml", low=-0.1)
    assert said(empty, case("better"), controls=(seen,))[1].endswith("quants are worse for sure.")
    second = said(empty, case("better"), controls=(seen, unseen))[1]
    assert "in 1 of 2 cases, so that small effects may go unseen" in second
    assert "the positive control fails" in said(empty, case("better"), controls=(unseen,))[1]
    assert "there is no positive control" in said(empty, case("better"))[1]


# -- what it does not say


def test_limits(empty):
    last = said(empty, case("undecided"), models={"demo": {"origin": "demo"}})[2]
    assert "one model (demo, a stand-in that was quantized once before)" in last
    assert "what the quants answer was not tested" in last
    assert "where undecided, a difference of 0.02 nats a token is not excluded" in last
    last = said(empty, case("better"), models={"big": {"origin": "hf:org/big"}})[2]
    assert "stand-in" not in last and "excluded" not in last
    last = said(empty, case("undecided", margin=math.nan, low=math.nan, high=math.nan))[2]
    assert "no margin was declared, so that nothing can be called equivalent" in last
    assert "too little text to exclude any difference" in last
    assert "few" not in last
    last = said(empty, case("better"), case("better", "ml", n_clusters=5))[2]
    assert "; there are as few as 5 documents in a text" in last


def test_what_is_missing_is_named(empty):
    lost = Missing("imatrix ml.1", "no text", "", ("quant ml.1 Q4_K_M", "score ml"))
    last = said(empty, case("better"), missing=(lost,))[2]
    assert "is imatrix ml.1, quant ml.1 Q4_K_M and score ml." in last


def test_a_text_too_short_for_an_interval(empty):
    c = case("undecided", low=math.nan, high=math.nan)
    assert "there is too little text for an interval" in said(empty, c)[0]
