"""Thoughts of the families of models that have them; templates and texts are in our own words."""

import pytest

from imatrix_lab.llamacpp import thoughts
from imatrix_lab.types import Generated

HARMONY = "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B, and no thoughts", "B, and no thoughts"),
        (" <b>B</b>\n", " <b>B</b>\n"),
        ("The mark <think> begins it", "The mark <think> begins it"),
        ("B: `</think>` ends it", "B: `</think>` ends it"),
        ("<think>Is it `</think>`?</think>B, `<think>`", "B, `<think>`"),
        ("<think class='x'>A</think >B", "B"),
        ("<think>\nA?\n</think>\n\nB", "B"),
        ("<think>\n\n</think>\n\nB", "B"),
        ("A? Or C?\n</think>\n\nB", "B"),  # the prompt had opened them
        ("<think>A</think>\n<think>C</think>B", "B"),
        ("<Think>A</Think><answer>B</answer>", "B"),
        ("<think>A</think><response>B", "B"),
        ("<seed:think>A</seed:think>B", "B"),
        ("<thought>A</thought>\n<Output>\nB\n</Output>", "B"),
        ("[THINK]A[/THINK]B", "B"),
        ("A[/THINK]B", "B"),
        ("<think:x>A</think:x>B", "B"),
        ("<|inner_prefix|>A<|inner_suffix|>B", "B"),
        ("<|think|>A<|end|><|begin|>assistant<|content|>B", "B"),
        ("A<|close|>think<|sep|><|open|>response<|sep|>B<|close|>response<|sep|>", "B"),
        ("◁think▷A◁/think▷B", "B"),
        ("<|START_THINKING|>A<|END_THINKING|><|START_RESPONSE|>B<|END_RESPONSE|>", "B"),
        ("<|channel>thought\nA<channel|>B", "B"),
        (f"{HARMONY}final<|message|>B", "B"),
        ("<|channel|>final<|message|>B", "B"),
        ("analysisThe user wants A.assistantfinalB", "B"),
        ("Here is my thought process:\nA\n\nHere is my response:\nB", "B"),
        ("Here are my reasoning steps:\nA\n[BEGIN FINAL RESPONSE]\nB[END FINAL RESPONSE]", "B"),
    ],
)
def test_the_answer_is_what_follows_thoughts(text, answer):
    assert thoughts.answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nIs it (A)?",
        "  <think>",
        "<think>A</think>\n<think>or C",
        "A</think>\n<think>or C",
        "<think>\nWhat does «</think>» end? A?",
        "<think class='x'>A",
        "[THINK]A",
        "<|START_THINKING|>A",
        "<|channel>thought\nA",
        "<|channel|>analysis<|message|>A",
        f"{HARMONY}commentary<|message|>C",
        "analysisThe user wants A",
        "Here is my thought process: A",
        "<think>A</think>",
    ],
)
def test_thoughts_alone_are_no_answer(text):
    assert thoughts.answer(text) == ""
    assert thoughts.is_cut(Generated("", text, 9, "length"))
    assert not thoughts.is_cut(Generated("", text, 9, "eos"))


def test_what_a_prompt_begins():
    assert thoughts.opened("<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert thoughts.opened("<A><think>\nOkay,") == "<think>\nOkay,"
    assert thoughts.opened("<A>\nHere are my reasoning steps:\n").startswith("Here are")
    for end in ("<think>\n\n</think>\n\n", "<|im_start|>assistant\n", "", "<think></think>"):
        assert thoughts.opened(end) == ""
    assert thoughts.begun_by_prompt("A\n</think>\nB")
    assert not thoughts.begun_by_prompt("<think>A</think>B")
    assert not thoughts.begun_by_prompt("B: `</think>` ends it")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("B\nC", "B"),
        ("\nB", ""),
        ("<think>\nA\n</think>\n\nB\nC", "<think>\nA\n</think>\n\nB"),
        ("<think>\nA\n", "<think>\nA\n"),
        ("A\n</think>\n\nB", "A\n</think>\n\nB"),
    ],
)
def test_a_stop_string_ends_answers_not_thoughts(text, kept):
    assert thoughts.before_stop(text, ("\n", "")) == kept


@pytest.mark.parametrize(
    ("template", "has"),
    [
        ("{% if enable_thinking is defined and not enable_thinking %}x{% endif %}", True),
        ("{{ '' if thinking else '<think></think>' }}", True),
        ("{# enable_thinking #}{{ m.thinking }}{% if 'thinking' in m %}{% endif %}", False),
        ("enable_thinking {{ 'no thinking please' }}{{ rethinking }}", False),
        ("{% set ns = namespace(enable_thinking=true) %}{{ ns.enable_thinking }}", False),
        ("", False),
    ],
)
def test_whether_a_template_has_the_switch(template, has):
    assert thoughts.has_switch(template) == has
