"""Answers: against a Llama in numpy, at any parallelism, and where they end."""

import dataclasses
import gc
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from scipy.stats import chisquare

from imatrix_lab.core.progress import Silent
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.score import generate
from imatrix_lab.score.generate import Prompt, Sampler
from imatrix_lab.types import GenerateItem, Sampling
from tests import tiny_model
from tests.score import items, made
from tests.score.numpy_llama import NumpyLlama

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<|chat|>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|chat|>assistant {% endif %}"
)


def plain(n, seed=0, max_tokens=20):
    return [
        GenerateItem(
            f"{i}", (("", made.prose(2 + 13 * i % 70, 31 * i + seed)),), max_tokens + i % 7
        )
        for i in range(n)
    ]


@pytest.fixture
def answer(tools, kernel, store):
    """A function: model file, items -> answers by id."""

    def run(path, asked, parallel=16, **rest):
        setup = items.setup(kernel, parallel=parallel, **rest)
        model = made.load(path, store)
        results = list(generate.generate(tools, model, asked, setup, Silent()))
        assert sorted(f.id for f in results) == sorted(i.id for i in asked)
        return {f.id: f for f in results}

    return run


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """The reference with a chat template, and with the letter t for the end of a text."""
    path = tmp_path_factory.mktemp("ending") / "ending-f16.gguf"
    letter = 260 + tiny_model.PIECES.index("t")
    return tiny_model.write(path, output_scale=0.25, chat_template=TEMPLATE, eos=letter)


def test_threads_are_given_back(answer, reference):
    answer(reference, plain(2))
    gc.collect()
    gc.disable()
    try:
        before = threading.active_count()
        for _ in range(3):
            answer(reference, plain(2))
        until = time.monotonic() + 10  # they end by themselves
        while threading.active_count() > before and time.monotonic() < until:
            time.sleep(0.05)
        assert threading.active_count() <= before
    finally:
        gc.enable()


# -- an independent reference


def test_the_most_probable_token_each_time(answer, tools, reference):
    asked = plain(3, max_tokens=8)
    answers = answer(reference, asked)
    model = NumpyLlama(reference)
    with Vocabulary(tools, reference) as vocabulary:
        for item in asked:
            tokens, raw = vocabulary.tokens(item.messages[0][1]), b""
            n_prompt, margin = len(tokens), 1.0
            while len(tokens) - n_prompt < item.max_tokens and not vocabulary.is_end(tokens[-1]):
                last = model.logits(np.array(tokens))[-1]
                margin = min(margin, np.diff(np.sort(last)[-2:])[0])
                tokens.append(int(last.argmax()))
                raw += vocabulary.piece(tokens[-1])
            assert margin > 1e-3, "choose another seed: two tokens are all but equally probable"
            assert answers[item.id].text == raw.decode("utf-8", "replace")
            assert answers[item.id].n_tokens == len(tokens) - n_prompt


# -- sampled


def test_draws_are_from_the_softmax(reference):
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.04, 0.01], np.float32))
    for temperature, expected in (
        (1.0, np.array([0.5, 0.3, 0.15, 0.04, 0]) / 0.99),  # 0.01 is less than 5 % of 0.5
        (2.0, np.sqrt([0.5, 0.3, 0.15, 0.04, 0]) / np.sqrt([0.5, 0.3, 0.15, 0.04]).sum()),
    ):
        sampler = Sampler(Sampling(temperature, 1), "x")
        counts = np.bincount([sampler.draw(logits) for _ in range(4000)], minlength=5)
        assert counts[4] == 0
        assert chisquare(counts[:4], 4000 * expected[:4]).pvalue > 0.01


def test_a_sampled_answer_depends_on_item_and_seed_alone(answer, reference):
    def asked(temperature, seed):
        sampling = Sampling(temperature, seed)
        return [dataclasses.replace(item, sampling=sampling) for item in plain(18)]

    greedy, sampled = answer(reference, plain(18)), answer(reference, asked(1.0, 1))
    assert answer(reference, asked(1.0, 1)[::-1], parallel=24) == sampled
    mixed = [*plain(9), *asked(1.0, 1)[9:]]
    assert answer(reference, mixed) == {i: (greedy if int(i) < 9 else sampled)[i] for i in greedy}
    assert all(sampled[i].text != greedy[i].text for i in greedy)
    assert all(f.text != sampled[i].text for i, f in answer(reference, asked(1.0, 2)).items())
    assert answer(reference, asked(1e-4, 1)) == greedy


# -- the same answers at any parallelism


@pytest.mark.parametrize("kind", ["F16", "Q4_K_M"])
def test_an_answer_depends_on_its_item_alone(answer, reference, quants, kind):
    path = quants.get(kind, reference)
    shared = "en to tre fire fem " * 5  # prompts that begin alike take over what a slot has
    asked = [
        *plain(18),
        *(GenerateItem(f"s{i}", (("", shared + made.prose(9 + i, i)),), 12) for i in range(6)),
    ]
    answers = answer(path, asked)
    assert len({f.text for f in answers.values()}) > 15
    assert answer(path, asked) == answers
    assert answer(path, asked[::-1], parallel=24) == answers
    assert answer(path, asked, n_batch=32) == answers
    few = asked[5:8]
    assert answer(path, few) == {i.id: answers[i.id] for i in few}


def test_fewer_at_a_time(answer, reference):
    """Nothing is promised here but that it works; on this processor it is the same."""
    asked = plain(7)
    for parallel in (1, 3):
        answers = answer(reference, asked, parallel=parallel)
        assert all(f.finish and not f.error for f in answers.values())


def test_what_a_slot_has_is_not_decoded_again(answer, reference, monkeypatch):
    sizes = []
    decode = generate.Engine.decode

    def watch(self, step):
        sizes.append(len(step.tokens))
        return decode(self, step)

    monkeypatch.setattr(generate.Engine, "decode", watch)
    shared = made.prose(120)
    asked = [GenerateItem(f"{i}", (("", shared + f" {i}"),), 1) for i in range(4)]
    answer(reference, asked, parallel=1)
    joins = [n for n in sizes if n > 1]
    assert joins[0] > 100
    assert set(joins[1:]) == {16}


class Seen(Silent):
    """Remembers what a step reports."""

    def __init__(self):
        self.reports = []

    @contextmanager
    def task(self, name, total, unit):
        yield self

    def update(self, done, note=""):
        self.reports.append((done, note))


def test_progress_moves_while_answers_are_written(tools, kernel, store, reference):
    asked = [GenerateItem(f"{i}", (("", "en to"),), 20) for i in range(3)]
    asked.append(GenerateItem("failed", (("", ""),), 0))
    seen = Seen()
    answers = list(generate.generate(tools, made.load(reference, store), asked,
                                   items.setup(kernel), seen))  # fmt: skip
    assert sum(bool(g.error) for g in answers) == 1
    (first, note), *others = seen.reports
    assert (first, note) == (1, "")  # a note would say that an earlier run had done it
    done = [d for d, _ in others]
    assert done == sorted(done)
    assert done[0] == pytest.approx(1 + 3 / 20)
    assert done[-1] == 4
    assert all("tokens/s" in note for _, note in others)


def test_answers_come_as_they_end(tools, kernel, store, reference):
    asked = [GenerateItem("long", (("", "en"),), 40), GenerateItem("short", (("", "to"),), 2)]
    setup = items.setup(kernel)
    model = made.load(reference, store)
    answers = [g.id for g in generate.generate(tools, model, asked, setup, Silent())]
    assert answers == ["short", "long"]


# -- where answers end


def test_ends(answer, reference, ending):
    asked = plain(40, max_tokens=40)
    answers, free = answer(ending, asked), answer(reference, asked)
    assert {f.finish for f in answers.values()} == {"eos", "length"}
    for i, f in answers.items():
        if f.finish == "eos":
            assert free[i].text.startswith(f.text.rstrip("\ufffd"))
            assert f.n_tokens < 40 + int(i) % 7
        else:
            assert f == free[i]
            assert f.n_tokens == 40 + int(i) % 7


def test_a_stop_string_across_tokens(answer, reference):
    asked = plain(6, max_tokens=30)
    free = answer(reference, asked)
    for item in asked:
        text = free[item.id].text
        stop = text[5:9]
        (result,) = answer(reference, [dataclasses.replace(item, stop=("never", stop))]).values()
        if "\ufffd" in stop:  # no text: bytes that are none cannot be asked for
            assert result == free[item.id]
        else:
            before = text[: text.index(stop)].rstrip("\ufffd")  # which may be part of a character
            assert (result.text.rstrip("\ufffd"), result.finish) == (before, "stop")
            assert result.n_tokens < free[item.id].n_tokens


@pytest.mark.parametrize(
    ("pieces", "stop", "text"),
    [
        ([b"a\xc3", b"\xa5b"], "å", "a"),
        ([b"one\n", b"\nQ", b": x"], "\n\nQ:", "one"),
        ([b"end", b" of END it"], "END", "end of "),
        ([b"first second"], "second", "first "),
    ],
)
def test_stops_and_characters_in_parts(pieces, stop, text):
    item = GenerateItem("x", (("", "x"),), 9, ("", "zzz", stop))
    result = generate._Answer(Prompt(item, (1,)), 0, 0)
    ended = []
    for piece in pieces:
        result.raw += piece
        ended.append(result.cut_at_stop(len(piece)))
    assert result.text() == text
    assert ended[-1]


def test_part_of_a_character_is_not_shown():
    result = generate._Answer(Prompt(plain(1)[0], (1,)), 0, 0, bytearray("blå".encode()[:-1]))
    assert result.text() == "bl"


def test_the_answer_needs_room_too(answer, reference):
    """An item that could be cut off by the context is not asked at all."""
    asked = [GenerateItem("fits", (("", "en to"),), 30), GenerateItem("not", (("", "en to"),), 900)]
    answers = answer(reference, asked, n_ctx=40)
    assert answers["fits"].finish in {"length", "eos"}
    assert answers["not"].error.startswith("prompt longer than the context: ")


# -- chats


def test_chats_in_the_model_s_words(tools, ending, store):
    model = made.load(ending, store)
    chat = GenerateItem("chat", (("user", "en to"),), 3)
    text = GenerateItem("plain", (("", "en"), ("", "to <|chat|>")), 3)
    with Vocabulary(tools, ending) as vocabulary:
        possible, failed = generate.prompts(vocabulary, model, [chat, text], 100)
        written = "<|chat|>user en to</s><|chat|>assistant "
        assert possible[0].tokens == tuple(vocabulary.tokens(written, parse_special=True))
        assert 3 in possible[0].tokens
        assert possible[1].tokens == tuple(vocabulary.tokens("en\n\nto <|chat|>"))
        assert 3 not in possible[1].tokens
    assert failed == []


def test_a_chat_without_a_template_is_plain(tools, reference, store):
    asked = [GenerateItem("x", (("system", "en"), ("user", "to")), 3)]
    with Vocabulary(tools, reference) as vocabulary:
        possible, _ = generate.prompts(vocabulary, made.load(reference, store), asked, 100)
        assert possible[0].tokens == tuple(vocabulary.tokens("en\n\nto"))


# -- thoughts

OPENS = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ '<think>\n' }}"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """A model whose template begins thoughts, as R1's."""
    path = tmp_path_factory.mktemp("thinker") / "thinker-f16.gguf"
    return tiny_model.write(path, output_scale=0.25, chat_template=OPENS)


def test_thoughts_that_the_prompt_begins_are_in_the_text(answer, thinker, reference):
    asked = [GenerateItem("x", (("user", "en to"),), 12)]
    plain_text = [GenerateItem("x", (("", "en to<think>\n"),), 12)]
    thought = answer(thinker, asked)["x"]
    assert thought.text == "<think>\n" + answer(reference, plain_text)["x"].text
    assert (thought.n_tokens, thought.finish) == (12, "length")


def test_thoughts_have_room_beside_the_answer(tools, thinker, store):
    """Beyond the context that is asked for, but not beyond what the model was trained on."""
    long = GenerateItem("long", (("user", made.prose(60)),), 9, thought_tokens=50)
    with Vocabulary(tools, thinker) as vocabulary:

        def tokens(n_ctx, **more):
            item = dataclasses.replace(long, **more)
            possible, failed = generate.prompts(
                vocabulary, made.load(thinker, store), [item], n_ctx
            )
            return possible[0].item.max_tokens if possible else failed[0].error.partition(":")[0]

        (prompt,), _ = generate.prompts(vocabulary, made.load(thinker, store), [long], 1000)
        n = len(prompt.tokens)
        assert prompt.opened == "<think>\n"
        assert tokens(n + 9) == 59
        assert tokens(n + 9, thought_tokens=0) == 9
        assert tokens(n + 8) == "prompt longer than the context"
        assert tokens(n + 9, thought_tokens=9999) == 2048 - n


def test_a_stop_string_in_thoughts_ends_nothing():
    item = GenerateItem("x", (("", "x"),), 9, ("\n", "å"))
    result = generate._Answer(Prompt(item, (1,)), 0, 0, bytearray(b"<think>\n"))
    ended = []
    for piece in ("A", "\n", "å", "</think>", "\n\n", "B", "\n", "C"):
        result.raw += piece.encode()
        ended.append(result.cut_at_stop(len(piece.encode())))
        if ended[-1]:
            break
    assert ended == [False] * 6 + [True]
    assert result.text() == "<think>\nA\nå</think>\n\nB"


def test_marks_that_are_special_tokens_are_in_the_text(tools, tmp_path):
    marks = ["[THINK]", "[/THINK]", "<|channel|>", "<|other|>"]
    pieces = [*tiny_model.PIECES, *marks]
    path = tiny_model.write(tmp_path / "marks-f16.gguf", pieces=pieces)
    with Vocabulary(tools, path) as vocabulary:
        tokens = vocabulary.tokens("".join(marks), add_special=False, parse_special=True)
        assert len(tokens) == 4
        assert b"".join(map(vocabulary.piece, tokens)) == b"[THINK][/THINK]<|channel|>"
        assert vocabulary.piece(3) == b""


# -- items that fail


def test_what_cannot_be_answered_is_a_failed_item(answer, ending):
    good = GenerateItem("good", (("user", "en to"),), 5)
    asked = [
        good,
        GenerateItem("refused", (("system", "en"), ("user", "to")), 5),
        GenerateItem("long", (("", made.prose(900)),), 5),
        GenerateItem("none", (("", "en"),), 0),
    ]
    answers = answer(ending, asked)
    assert answers["good"] == answer(ending, [good])["good"]
    assert not answers["good"].error
    assert "no system" in answers["refused"].error
    assert answers["long"].error.startswith("prompt longer than the context: ")
    assert answers["none"].error == "max_tokens is 0"
    assert {f.finish for f in answers.values() if f.error} == {""}


def test_nan_is_in_no_other_answer(answer, tmp_path):
    token = 260 + tiny_model.PIECES.index("z")
    path = tiny_model.write(tmp_path / "nan-f16.gguf", output_scale=0.25, nan_token=token)
    words = {"a": "en to", "z": "en z to", "b": "tre", "y": "z", "c": "de er", "d": "et ng en"}
    asked = [GenerateItem(name, (("", text),), 4) for name, text in words.items()]
    answers = answer(path, asked, parallel=2)
    assert {n for n, f in answers.items() if f.error} >= {"z", "y"}
    good = [i for i in asked if not answers[i.id].error]
    assert len(good) > 1
    assert answer(path, good, parallel=2) == {i.id: answers[i.id] for i in good}


def test_no_items(answer, reference):
    assert answer(reference, []) == {}
