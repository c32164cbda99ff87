"""Each row that numbers may lead to; none says more than the verdict."""

import dataclasses
import math

import pytest

from imatrix_lab.core import config
from imatrix_lab.pipeline.quick_answer import Answer, Rival, as_json, rows, sentence

NONE = Rival(
    language="",
    imatrix_tokens=0,
    imatrix_sha256="",
    sha256="aa",
    kld_nats=0.1996,
    difference_nats=-0.0863,
    std_error=0.0028,
    ci95_low=-0.0924,
    ci95_high=-0.0801,
    p_holm=0.0001,
    method="permutation",
    verdict="better",
)
ENGLISH = dataclasses.replace(
    NONE, language="en", imatrix_tokens=8192, kld_nats=0.1343, difference_nats=-0.021,
    std_error=0.0031, ci95_low=-0.027, ci95_high=-0.015,
)  # fmt: skip


def answer(*rivals):
    return Answer("Q4_K_M", "nb", "Norwegian Bokmål", 65536, 12, 192, 2292, 0.1133, rivals, {})


def test_better_than_both(golden):
    golden("sentence", sentence(answer(NONE, ENGLISH)))
    own, english, none = rows(answer(NONE, ENGLISH))
    assert own == "nb 0.1133"
    assert english.startswith("English 0.1343 (nb 15.6 % less") and "−0.0270 … −0.0150" in english
    assert none.startswith("none 0.1996 (nb 43.2 % less") and "−0.0924 … −0.0801" in none


def test_worse(golden):
    worse = dataclasses.replace(
        NONE, kld_nats=0.1, difference_nats=0.0133, ci95_low=0.01, ci95_high=0.017, verdict="worse"
    )
    golden("row", rows(answer(worse))[1])
    assert "nb 13.3 % more" in rows(answer(worse))[1]


@pytest.mark.parametrize("verdict", ["undecided", "equivalent"])
def test_undecided(verdict, golden):
    unsure = dataclasses.replace(
        NONE, kld_nats=0.1143, difference_nats=-0.001, ci95_low=-0.007, ci95_high=0.005,
        verdict=verdict,
    )  # fmt: skip
    golden("row", rows(answer(unsure))[1])
    assert "%" not in rows(answer(unsure))[1].replace("95 % CI", "")


def test_an_interval_without_zero_does_not_make_an_adjusted_verdict_stronger():
    unsure = dataclasses.replace(ENGLISH, verdict="undecided", p_holm=0.06)
    assert "nb" not in rows(answer(unsure))[1]


def test_too_few_documents(golden):
    few = dataclasses.replace(NONE, ci95_low=-math.inf, ci95_high=math.inf, verdict="undecided")
    golden("row", rows(answer(few))[1])
    back = config.build(Answer, config.plain(answer(few)), "manifest")
    assert sentence(back) == sentence(answer(few))


def test_the_same(golden):
    same = dataclasses.replace(
        NONE, difference_nats=0.0, std_error=0.0, ci95_low=0.0, ci95_high=0.0, verdict="undecided"
    )
    golden("row", rows(answer(same))[1])


def test_the_manifest_has_sentence_and_numbers():
    plain = as_json(answer(NONE))
    assert plain["sentence"] == sentence(answer(NONE))
    assert plain["rivals"][0]["ci95_low"] == NONE.ci95_low
