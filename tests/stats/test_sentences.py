"""Sentences: right words for each verdict, and everything a statistician asks for."""

import dataclasses
import math
import re

import numpy as np
import pytest

from imatrix_lab.stats import comparison, interaction, paired, sentences
from imatrix_lab.stats.comparison import Question
from imatrix_lab.stats.metrics import METRICS


def question(metric="kld_nats", margin=None):
    return Question("nb Q3_K_S", "en Q3_K_S", "nb", METRICS[metric], margin)


def answer(shift, spread=1.0, n_clusters=30, metric="kld_nats", margin=None):
    """Values whose mean difference is exactly `shift`, with a standard error of about `spread`."""
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(n_clusters), 10)
    own = rng.normal(0, 1, n_clusters)
    own = (own - own.mean()) * spread * n_clusters**0.5
    b = rng.random(len(codes))
    return comparison.compare(
        question(metric, margin), (b + shift + own[codes], b), codes, rng, n_resamples=500
    )


def binary_answers(n_clusters=40):
    rng = np.random.default_rng(4)
    codes = np.repeat(np.arange(n_clusters), 3)
    b = (rng.random(3 * n_clusters) < 0.6).astype(float)
    a = np.where(rng.random(3 * n_clusters) < 0.2, 1.0, b)
    items = dataclasses.replace(question("score", 0.02), values="items", clusters="item groups")
    return comparison.compare(items, (a, b), codes, rng, n_resamples=500)


CASES = {
    "better": lambda: answer(-0.02, spread=0.002),
    "worse": lambda: answer(0.02, spread=0.002),
    "lower score": lambda: answer(-0.02, spread=0.002, metric="score"),
    "equivalent": lambda: answer(0.001, spread=0.002, margin=0.01),
    "undecided": lambda: answer(0.004, spread=0.005, margin=0.01),
    "no margin": lambda: answer(0.004, spread=0.005),
    "few documents": lambda: answer(0.3, spread=0.1, n_clusters=7),
    "too few documents": lambda: answer(0.3, spread=0.1, n_clusters=5),
    "binary": binary_answers,
    "not finite": lambda: dataclasses.replace(CASES["better"](), n_excluded=2),
    "one document": lambda: dataclasses.replace(
        CASES["better"](), method=paired.BLOCKS, n_clusters=1
    ),
    "one sample": lambda: comparison.with_samples(CASES["better"](), crossed(-0.1)),
    "samples": lambda: comparison.with_samples(CASES["no margin"](), crossed(0.0, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_comparison(case, golden):
    result = CASES[case]()
    golden("plain", sentences.plain(result))
    golden("formal", sentences.formal(result))


def test_words_follow_the_verdict():
    words = {name: sentences.plain(make()) for name, make in CASES.items()}
    assert "is better than" in words["better"] and "is worse than" in words["worse"]
    assert "is worse than" in words["lower score"]
    assert "are equivalent" in words["equivalent"]
    assert "cannot be told apart" in words["undecided"]


def test_the_number_that_would_decide_is_rounded_up():
    result = answer(0.004, spread=0.005, margin=0.01)
    assert result.n_to_decide > result.n
    named = int(re.search(r"About ([\d,]+) tokens", sentences.plain(result))[1].replace(",", ""))
    assert result.n_to_decide <= named <= result.n_to_decide * 1.1


def test_the_number_named_does_decide():
    """With data as wide, and as many documents as were named, no estimate is undecided."""
    pilot = answer(0.004, spread=0.005, margin=0.01)
    more = pilot.clusters_to_decide
    spread = 0.005 * (30 / more) ** 0.5
    for shift in np.linspace(0, 0.012, 13):
        result = answer(shift, spread=spread, n_clusters=more, margin=0.01)
        assert result.verdict() != "undecided" or abs(spread / result.std_error - 1) > 0.05


def test_formal_has_the_exact_tests_of_items():
    result = binary_answers()
    text, mcnemar = sentences.formal(result), result.items.mcnemar
    assert f"{mcnemar.wins_a} to {mcnemar.wins_b} net wins" in text
    assert f"exact p = {mcnemar.p_exact:.4f}" in text
    assert f"Newcombe 95 % CI {100 * result.items.newcombe_low:.1f} to" in text
    assert "McNemar" not in sentences.formal(answer(0.01))


def test_family_noise_and_one_big_document_are_mentioned(golden):
    result = dataclasses.replace(
        answer(-0.02, spread=0.002), n_family=12, adjust="holm", p_holm=0.03, noise_multiple=4.04
    )
    big = dataclasses.replace(result.paired, largest_share=0.6)
    result = dataclasses.replace(result, paired=big)
    golden("plain", sentences.plain(result))
    golden("formal", sentences.formal(result))


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.08, 0.09, "95 % CI 0.080 to 0.090"),
        (-0.09, -0.08, "95 % CI 0.080 to 0.090"),
        (-0.01, 0.02, "95 % CI 0.010 nats lower to 0.020 nats higher"),
        (-math.inf, math.inf, "too little data for a 95 % CI"),
    ],
)
def test_interval(low, high, text):
    assert sentences.ci(low, high, 0.01, "nats") == text


def crossed(shift, samples=1):
    rng = np.random.default_rng(2)
    names = np.array([f"d{i}" for i in range(20)])
    cells = []
    for group, text, sign in (("nb", "nb", 1), ("en", "nb", -1), ("nb", "en", -1), ("en", "en", 1)):
        for k in range(samples):
            values = rng.normal(0, 0.01, 20) + (shift / 2 if group == text else 0)
            cells.append(
                interaction.Cell(sign / samples, group, str(k), values, np.ones(20), names)
            )
    return interaction.contrast(cells)


@pytest.mark.parametrize(
    ("shift", "samples", "p", "words"),
    [
        (-0.1, 1, 0.001, "helps its own language more"),
        (-0.1, 3, 0.001, "helps its own language more"),
        (0.1, 1, 0.001, "helps its own language less"),
        (0.0, 1, 0.9, "do not show"),
    ],
)
def test_interaction(shift, samples, p, words, golden):
    contrast = crossed(shift, samples)
    parts = ("nb", "en", "Q3_K_S", METRICS["kld_nats"], contrast, p)
    plain, formal = sentences.plain_interaction(*parts), sentences.formal_interaction(*parts)
    golden("plain", plain)
    golden("formal", formal)
    assert words in plain
    assert ("not separable" in formal) == (samples == 1)


def test_an_interval_without_zero_says_its_direction_where_the_verdict_is_undecided():
    text = sentences.no_clear_difference("KLD", -0.0223, -0.0009, 0.005, "nats")
    assert "nats lower" in text and "adjust" in text
    text = sentences.no_clear_difference("KLD", -0.007, 0.005, 0.003, "nats")
    assert "lower" in text and "higher" in text and "adjust" not in text
