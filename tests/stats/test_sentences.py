"""Sentences: right words for each verdict, and everything a statistician asks for."""

import dataclasses
import re

import numpy as np

from imatrix_lab.stats import comparison, interaction, sentences
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


def test_better_and_worse_say_by_how_much():
    found = answer(-0.02, spread=0.002)
    text = sentences.plain(found)
    assert "nb Q3_K_S is better than en Q3_K_S" in text
    assert "0.0200 nats a token lower" in text
    assert re.search(r"95 % sure: between 0\.01\d\d and 0\.02\d\d", text)
    assert "is worse than" in sentences.plain(answer(0.02, spread=0.002))


def test_higher_is_better_for_scores():
    found = answer(-0.02, spread=0.002, metric="score")
    assert "is worse than" in sentences.plain(found)
    assert "2.00 points lower" in sentences.plain(found)


def test_equivalent_names_the_margin():
    text = sentences.plain(answer(0.001, spread=0.002, margin=0.01))
    assert "are equivalent" in text
    assert "less than the 0.01 nats a token that were declared to matter" in text


def test_undecided_names_what_would_decide():
    found = answer(0.004, spread=0.005, margin=0.01)
    text = sentences.plain(found)
    assert "cannot tell nb Q3_K_S and en Q3_K_S apart" in text
    assert found.n_to_decide > found.n
    named = int(re.search(r"About ([\d,]+) tokens", text)[1].replace(",", ""))
    assert found.n_to_decide <= named <= found.n_to_decide * 1.1
    assert "Without a margin there is no saying" in sentences.plain(answer(0.004, spread=0.005))


def test_the_number_named_does_decide():
    """With data as wide, and as many documents as were named, no estimate is undecided."""
    pilot = answer(0.004, spread=0.005, margin=0.01)
    more = pilot.clusters_to_decide
    spread = 0.005 * (30 / more) ** 0.5
    for shift in np.linspace(0, 0.012, 13):
        found = answer(shift, spread=spread, n_clusters=more, margin=0.01)
        assert found.verdict() != "undecided" or abs(spread / found.std_error - 1) > 0.05


def test_formal_has_null_margin_threshold_and_limits():
    text = sentences.formal(answer(0.004, spread=0.005, margin=0.01))
    for part in (
        "95 % CI", "CR3, t with 29 df", "n = 300 tokens in 30 documents", "design effect",
        "null: no difference, p = ", "threshold 0.05", "TOST with margin ±0.01 nats a token",
        "detectable with 80 % power", "and no others",
    ):  # fmt: skip
        assert part in text, part
    assert "equivalence was not tested" in sentences.formal(answer(0.004))


def test_family_noise_and_one_big_document_are_mentioned():
    found = dataclasses.replace(
        answer(-0.02, spread=0.002), n_family=12, adjust="holm", p_holm=0.03, noise_multiple=4.04
    )
    assert "(Holm over 12: = 0.0300)" in sentences.formal(found)
    assert "4.0 times what two texts of one language differ by" in sentences.plain(found)
    big = dataclasses.replace(found.paired, largest_share=0.6)
    assert "holds 60 %" in sentences.formal(dataclasses.replace(found, paired=big))


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


def test_interaction_in_words():
    metric = METRICS["kld_nats"]
    found = crossed(-0.1)
    text = sentences.plain_interaction("nb", "en", "Q3_K_S", metric, found, 0.001)
    assert "helps its own language more" in text
    assert "may be that text, not the language" in text
    formal = sentences.formal_interaction("nb", "en", "Q3_K_S", metric, found, 0.001)
    assert "(nb - en on nb) - (nb - en on en)" in formal
    assert "not separable" in formal
    several = crossed(-0.1, samples=3)
    formal = sentences.formal_interaction("nb", "en", "Q3_K_S", metric, several, 0.001)
    assert "3 of nb, 3 of en" in formal
    assert "not separable" not in formal
    less = sentences.plain_interaction("nb", "en", "Q3_K_S", metric, crossed(0.1), 0.001)
    assert "helps its own language less" in less
    nothing = sentences.plain_interaction("nb", "en", "Q3_K_S", metric, crossed(0.0), 0.9)
    assert "do not show" in nothing
