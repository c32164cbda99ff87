"""Likelihoods of options: against a Llama in numpy, plain decodes, and in other batches."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from imatrix_lab.core import process
from imatrix_lab.core.progress import Silent
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.score import choice_layout, multiple_choice
from imatrix_lab.score.windows import STEP_MIN, Decode
from imatrix_lab.types import ChoiceItem
from tests import tiny_model
from tests.score import items, made
from tests.score.numpy_llama import NumpyLlama
from tools.common import multiple_choice_bytes

NOISE = 5e-3
"""Nats a token, beside another order of sums: see test_engine.py."""


@pytest.fixture
def score(tools, kernel, store):
    """A function: model file, items -> scores, in order."""

    def run(path, asked, **rest):
        setup = items.setup(kernel, **rest)
        return list(multiple_choice.score(tools, made.load(path, store), asked, setup, Silent()))

    return run


def expected(path, tools, item):
    """Log-probabilities by numpy, one plain pass for each option."""
    model = NumpyLlama(path)
    sums = []
    with Vocabulary(tools, path) as vocabulary:
        text = item.prefix + item.context
        whole = [vocabulary.tokens(text + option) for option in item.options]
        start = min(choice_layout.common([vocabulary.tokens(text), w]) for w in whole)
        for tokens in whole:
            log_p = made.log_softmax(model.logits(np.array(tokens)))
            sums.append(sum(log_p[i - 1, tokens[i]] for i in range(start, len(tokens))))
    return sums, [len(w) - start for w in whole]


# -- an independent reference


def test_likelihoods_are_those_of_a_llama_in_numpy(score, tools, reference):
    asked = items.choices(3)
    for item, result in zip(asked, score(reference, asked), strict=True):
        sums, counts = expected(reference, tools, item)
        assert list(result.n_tokens) == counts
        assert result.n_bytes == tuple(len(o.encode()) for o in item.options)
        np.testing.assert_allclose(
            np.array(result.logprobs_nats) / counts, np.array(sums) / counts, rtol=0, atol=NOISE
        )
        assert (result.id, result.error) == (item.id, "")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_options_together_are_options_alone(score, quants, kind):
    """One plain decode for each option, without prefix, neighbours or shared cells."""
    asked = items.choices(5)
    single = [
        dataclasses.replace(items.alone(item), id=f"{item.id}/{j}", options=(option,))
        for item in asked
        for j, option in enumerate(item.options)
    ]
    together = [s for f in score(quants[kind], asked) for s in f.logprobs_nats]
    alone = score(quants[kind], single, sequences_max=1)
    counts = [f.n_tokens[0] for f in alone]
    np.testing.assert_allclose(
        np.array(together) / counts,
        np.array([f.logprobs_nats[0] for f in alone]) / counts, rtol=0, atol=0.05,
    )  # fmt: skip


def accuracies(tools, path, raw, folder):
    """Running accuracy of llama-perplexity, by the mean over tokens, as right or wrong."""
    (folder / "items.bin").write_bytes(raw)
    argv = [tools.program("llama-perplexity"), "-m", path, "-bf", folder / "items.bin"]
    argv += ["--multiple-choice", "-t", "1", "-c", "512", "-np", "8", "-fa", "off", "--no-repack"]
    for _ in range(5):  # its logger can lose the last lines
        tail = process.run([*argv, "--no-warmup"], timeout_s=120).tail
        shown = [(int(n), float(a)) for n, a in re.findall(r"^(\d+)\t([\d.]+)$", tail, re.M)]
        right = [0, *(round(n * accuracy / 100) for n, accuracy in shown)]
        if "Final result" in tail:
            return [bool(b - a) for a, b in itertools.pairwise(right)]
    pytest.fail("llama-perplexity did not print its result")


def test_llama_perplexity_chooses_the_same(score, tools, reference, tmp_path):
    """It means over tokens from where the options part, and so is asked for here."""
    asked = [
        dataclasses.replace(
            i, options=tuple(f" {'abcdf'[j]}{o[2:]}e" for j, o in enumerate(i.options))
        )
        for i in items.choices(40)
    ]
    scores = score(reference, asked)
    means = [np.array(f.logprobs_nats) / f.n_tokens for f in scores]
    clear = [np.diff(np.sort(m)[-2:])[0] > 2 * NOISE for m in means]
    assert sum(clear) > 30
    for right in range(2):
        tasks = [(i.prefix + i.context, [o[1:] for o in i.options], right) for i in asked]
        theirs = accuracies(tools, reference, multiple_choice_bytes(tasks), tmp_path)
        ours = [int(np.argmax(m)) == right for m in means]
        assert [o for o, c in zip(ours, clear, strict=True) if c] == [
            t for t, c in zip(theirs, clear, strict=True) if c
        ]
        assert 0 < sum(ours) < len(ours)


# -- the same answers whatever the batch


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K_M"])
def test_an_item_scores_the_same_to_the_last_bit(score, reference, quants, kind):
    path = quants.get(kind, reference)
    asked = [*items.choices(6), *items.choices(2, prefix="", seed=5)]
    scores = score(path, asked)
    assert not [f.error for f in scores if f.error]
    for rest in (
        {"n_batch": 32, "n_rows": 32}, {"n_batch": 512, "n_rows": 512}, {"threads": 2},
        {"sequences_max": 9}, {"n_ctx": 1024},
    ):  # fmt: skip
        assert score(path, asked, **rest) == scores, rest
    assert score(path, asked[::-1]) == scores[::-1]
    for one in (0, 7):
        assert score(path, [asked[one]]) == [scores[one]]


def test_no_decode_is_short(score, reference, monkeypatch):
    seen = []
    decode = multiple_choice.Engine.decode

    def watch(self, step):
        seen.append((len(step.tokens), int(step.outputs.sum())))
        return decode(self, step)

    monkeypatch.setattr(multiple_choice.Engine, "decode", watch)
    score(reference, [*items.choices(5), ChoiceItem("x", "", "a", (" b", " c"))])
    assert min(n for n, _ in seen) >= STEP_MIN
    assert min(rows for _, rows in seen if rows) >= STEP_MIN
    assert 0 in [rows for _, rows in seen]


def test_a_prefix_is_decoded_once(score, reference, monkeypatch):
    """In two languages, their items in any order."""
    seen = []
    decode = multiple_choice.Engine.decode

    def watch(self, step):
        seen.append(step)
        return decode(self, step)

    monkeypatch.setattr(multiple_choice.Engine, "decode", watch)
    other = made.prose(150, 99) + "\n\n"
    both = [i for p in zip(items.choices(6), items.choices(6, other, 3), strict=True) for i in p]
    scores = score(reference, both)
    assert [f.id for f in scores] == [i.id for i in both]
    starts = [s for s in seen if s.sequences[0] == choice_layout.PREFIX and s.positions[0] == 0]
    assert len(starts) == 2
    assert sum(len(s.tokens) for s in seen if choice_layout.PREFIX in s.sequences) < 500


# -- where context and option meet


@pytest.fixture
def merging(tmp_path):
    """A model whose words join: `en` and `er` with what follows them."""
    pieces = [*tiny_model.PIECES, "ens", "enst", "ers"]
    return tiny_model.write(tmp_path / "merging-f16.gguf", pieces=pieces, output_scale=0.25)


def test_an_option_that_joins_the_context(score, tools, merging):
    """All options are scored from the token that one of them changes."""
    item = ChoiceItem("x", "", "de et en", ("s", " d", "st", "."))
    with Vocabulary(tools, merging) as vocabulary:
        before = vocabulary.tokens(item.context)
        joined = vocabulary.tokens(item.context + "s")
    assert len(joined) == len(before)
    (result,) = score(merging, [item])
    sums, counts = expected(merging, tools, item)
    assert list(result.n_tokens) == counts == [1, 2, 1, 2]
    np.testing.assert_allclose(result.logprobs_nats, sums, rtol=0, atol=4 * NOISE)


def test_an_item_that_joins_the_prefix(score, tools, merging):
    """The seam is decoded with the item, so that the prefix can be held."""
    prefix = "de et " * 20 + "en"
    asked = [
        ChoiceItem("x", prefix, "s ", ("de", "et")),
        ChoiceItem("y", prefix, " a", ("de", "t")),
    ]
    for item, result in zip(asked, score(merging, asked), strict=True):
        sums, counts = expected(merging, tools, item)
        assert list(result.n_tokens) == counts
        np.testing.assert_allclose(result.logprobs_nats, sums, rtol=0, atol=4 * NOISE)


def test_options_that_begin_alike_and_end_within_each_other(score, tools, reference):
    item = ChoiceItem("x", "", "de et", (" en to tre", " en to", " en to tre fire", " en to"))
    (result,) = score(reference, [item])
    sums, counts = expected(reference, tools, item)
    assert list(result.n_tokens) == counts
    np.testing.assert_allclose(result.logprobs_nats, sums, rtol=0, atol=10 * NOISE)
    assert result.logprobs_nats[1] == result.logprobs_nats[3]


def test_letters_of_other_scripts(score, tools, reference):
    item = ChoiceItem("x", "", "ചോദ്യം:", (" ഉത്തരം", " nei", " 🙂"))
    (result,) = score(reference, [item])
    assert result.n_bytes == (19, 4, 5)
    np.testing.assert_allclose(
        result.logprobs_nats, expected(reference, tools, item)[0], rtol=0, atol=19 * NOISE
    )


# -- items that cannot be scored


def test_what_cannot_be_scored_is_an_error_of_its_own(score, reference):
    good = items.choices(2)
    long = dataclasses.replace(good[0], id="long", context=made.prose(700, 1))
    just = dataclasses.replace(good[0], id="just", prefix="", context="a" * 505, options=("b", "c"))
    empty = dataclasses.replace(good[0], id="empty", options=(" a", ""))
    none = dataclasses.replace(good[0], id="none", options=())
    scores = score(reference, [good[0], long, just, empty, none, good[1]])
    assert scores[1].error.startswith("prompt longer than the context: ")
    assert [f.error for f in scores if f.id != "long"] == [
        "", "", "an option is empty", "the item has no options", "",
    ]  # fmt: skip
    assert [f.logprobs_nats == () for f in scores] == [False, True, False, True, True, False]
    assert score(reference, good) == [scores[0], scores[5]]


def test_without_bos_there_must_be_a_context(score, tmp_path):
    path = tiny_model.write(tmp_path / "no-bos-f16.gguf", bos=False)
    (scores,) = score(path, [ChoiceItem("x", "", "", (" a", " b"))])
    assert scores.error == "no token before the options to predict them from"


def test_nan_is_in_no_other_item(score, tmp_path):
    """Attention multiplies what is masked by 0, and a NaN stays one."""
    token = 260 + tiny_model.PIECES.index("z")
    path = tiny_model.write(tmp_path / "nan-f16.gguf", output_scale=0.25, nan_token=token)
    asked = [
        ChoiceItem(name, "de et er ", context, (" en to", " tre t"))
        for name, context in (("a", "en to"), ("b", "en z"), ("c", "tre en"), ("d", "et"))
    ]
    scores = score(path, asked)
    assert [bool(f.error) for f in scores] == [False, True, False, False]
    assert "not finite" in scores[1].error
    good = [asked[0], asked[2], asked[3]]
    assert score(path, good) == [scores[0], scores[2], scores[3]]


def test_more_options_than_sequences(score, reference):
    words = tuple(f" {a}{b}" for a in "etaons" for b in "rild")
    item = ChoiceItem("x", "", "de et", words)
    scores = [score(reference, [item], sequences_max=n)[0] for n in (64, 10)]
    np.testing.assert_allclose(
        scores[0].logprobs_nats, scores[1].logprobs_nats, rtol=0, atol=3 * NOISE
    )


def test_no_items(score, reference):
    assert score(reference, []) == []


# -- plans


def test_pieces_of_a_decode():
    n = 7 * choice_layout.ALIGN
    wanted = np.zeros(n, bool)
    wanted[[3, *range(40, 75)]] = True
    whole = Decode(*(np.arange(n, dtype=np.int32) for _ in range(4)), wanted)
    pieces = list(choice_layout.cut(whole, 48, 32))
    assert np.concatenate([p.tokens for _, p in pieces]).tolist() == list(range(n))
    assert all(len(p.tokens) % choice_layout.ALIGN == 0 and len(p.tokens) <= 48 for _, p in pieces)
    for place, piece in pieces:
        rows = int(piece.outputs.sum())
        assert rows == 0 or STEP_MIN <= rows <= 32
        assert (piece.outputs | ~wanted[place]).all()
        assert (rows == 0) == (not wanted[place].any())
