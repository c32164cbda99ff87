"""Each sentence that numbers may lead to; none says more than the verdict."""

import dataclasses
import math

import pytest

from imatrix_lab.core import config
from imatrix_lab.pipeline.quick_answer import Answer, Rival, as_json, sentence

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
    method="cr3",
    verdict="better",
)
ENGLISH = dataclasses.replace(
    NONE, language="en", imatrix_tokens=8192, kld_nats=0.1343, difference_nats=-0.021,
    std_error=0.0031, ci95_low=-0.027, ci95_high=-0.015,
)  # fmt: skip


def answer(*rivals):
    return Answer("Q4_K_M", "nb", "Norwegian Bokmål", 65536, 12, 192, 2292, 0.1133, rivals, {})


HEAD = (
    "On the first 192 tokens of 12 held-out documents of Norwegian Bokmål (2,292 scored), Q4_K_M"
    " with the nb imatrix of 65,536 tokens diverges from the original by 0.1133 nats a token: "
)


def test_better_than_both():
    assert sentence(answer(NONE, ENGLISH)) == HEAD + (
        "43.2 % less than without one (0.1996; 95 % sure: 0.0801 to 0.0924 nats less),"
        " and 15.6 % less than with an English one of 8,192 tokens"
        " (0.1343; 95 % sure: 0.0150 to 0.0270 nats less)."
    )


def test_worse():
    worse = dataclasses.replace(
        NONE, kld_nats=0.1, difference_nats=0.0133, ci95_low=0.01, ci95_high=0.017, verdict="worse"
    )
    assert sentence(answer(worse)) == HEAD + (
        "13.3 % more than without one (0.1000; 95 % sure: 0.0100 to 0.0170 nats more)."
    )


@pytest.mark.parametrize("verdict", ["undecided", "equivalent"])
def test_undecided(verdict):
    unsure = dataclasses.replace(
        NONE, kld_nats=0.1143, difference_nats=-0.001, ci95_low=-0.007, ci95_high=0.005,
        verdict=verdict,
    )  # fmt: skip
    assert sentence(answer(unsure)) == HEAD + (
        "which cannot be told from that without one"
        " (0.1143; 95 % sure: between 0.0070 less and 0.0050 more, in nats)."
    )


def test_an_interval_without_zero_does_not_make_an_adjusted_verdict_stronger():
    unsure = dataclasses.replace(ENGLISH, verdict="undecided", p_holm=0.06)
    assert "cannot be told from that with an English one" in sentence(answer(unsure))


def test_too_few_documents():
    few = dataclasses.replace(NONE, ci95_low=-math.inf, ci95_high=math.inf, verdict="undecided")
    assert "too few documents for an interval" in sentence(answer(few))
    back = config.build(Answer, config.plain(answer(few)), "manifest")
    assert "too few documents for an interval" in sentence(back)


def test_the_same():
    same = dataclasses.replace(
        NONE, difference_nats=0.0, std_error=0.0, ci95_low=0.0, ci95_high=0.0, verdict="undecided"
    )
    assert sentence(answer(same)).endswith("nats a token: the same as without one.")


def test_the_manifest_has_sentence_and_numbers():
    plain = as_json(answer(NONE))
    assert plain["sentence"] == sentence(answer(NONE))
    assert plain["rivals"][0]["ci95_low"] == NONE.ci95_low
