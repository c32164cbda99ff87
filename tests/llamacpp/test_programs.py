"""Parsers of what the programs print, on text in the shapes they print it."""

import pytest

from imatrix_lab.llamacpp import programs
from tools.common import multiple_choice_bytes


def test_windows_are_counted_across_pieces():
    steps = programs.Steps(programs.WINDOW)
    text = "ETA 0.2 minutes\n[1]13.9850,[2]18.4046,[3]nan,[12]1"
    for character in text:
        steps.feed(character)
    assert steps.last == 3
    assert steps.feed("6.8249,\nFinal estimate: PPL = 16.8249 +/- 1.09453") == 12


def test_tensors_are_counted_with_their_total():
    steps = programs.Steps(programs.TENSOR)
    steps.feed("[ 235/ 236] blk.17.post_attention_norm.weight - [ 768, 1, 1, 1], type = f32")
    assert (steps.last, steps.total) == (235, 236)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1]13.9,[2]16.8249,\nFinal estimate: PPL = 16.8249 +/- 1.09", 16.8249),
        ("[1]13.9850,[2]16.8249,", 16.8249),  # the end of the log was lost
        ("[1]13.9850,", None),
        ("no estimate", None),
    ],
)
def test_final_perplexity(text, value):
    assert programs.final_perplexity(text, 2) == value


def test_version_of_both_shapes():
    new = "version: 0.5.0 (build 0, commit 0c1e57098)\nbuilt with GNU 12.2.0 for Linux x86_64"
    old = "version: 4567 (a1b2c3d4)\nbuilt with cc (Debian) for x86_64-linux-gnu"
    assert programs.version_of(new) == ("0c1e57098", "GNU 12.2.0 for Linux x86_64")
    assert programs.version_of(old)[0] == "a1b2c3d4"
    assert programs.version_of("hello") is None


def test_metadata_that_would_be_cut_is_refused(tmp_path):
    with pytest.raises(ValueError, match="127"):
        options = programs.QuantizeOptions(1, metadata={"k": "x" * 128})
        programs.quantize_argv(tmp_path, tmp_path, None, "Q4_K_M", options)


def test_types_by_any_spelling():
    assert programs.quant_types(["q4_k", "Q4_K_M", "iq2_xs"]) == ("Q4_K_M", "IQ2_XS")
    with pytest.raises(KeyError):
        programs.quant_types(["Q9_K"])


def test_the_types_are_those_of_the_program(tools):
    import subprocess

    run = subprocess.run(
        [tools.program("llama-quantize"), "--help"], capture_output=True, text=True, check=False
    )
    text = run.stdout + run.stderr
    for name in programs.QUANT_TYPES:
        assert f" {name} " in text.replace(":", " "), name


def test_multiple_choice_file():
    """By hand; that llama-perplexity reads it is in tests/score/test_choice.py."""
    raw = multiple_choice_bytes([("å", ["b", "cd"], 1), ("", ["x"], 0)])
    first = b"\x02\0\0\0\xc3\xa5" + b"\x02\0\0\0" + b"\x01\0\0\0b" + b"\x02\0\0\0cd"
    first += b"\0\0\0\0\x01\0\0\0" + b"\0\0\0\0"
    second = b"\0\0\0\0" + b"\x01\0\0\0" + b"\x01\0\0\0x" + b"\x01\0\0\0" + b"\0\0\0\0"
    head = b"\x02\0\0\0" + bytes([12, 0, 0, 0]) + bytes([12 + len(first), 0, 0, 0])
    assert raw == head + first + second
