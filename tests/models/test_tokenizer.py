"""Token counts, and what the bindings leave behind in the process."""

import subprocess
import sys

import pytest

from imatrix_lab.errors import BadModel
from imatrix_lab.models.tokenizer import Vocabulary
from tests import tiny_model
from tests.models import headers

AFTERWARDS = """
import gc, sys
from pathlib import Path
from imatrix_lab.llamacpp import toolchain
from imatrix_lab.core.store import Store
from imatrix_lab.models.tokenizer import Vocabulary

tools = toolchain.find(Store(), "cpu")
for _ in range(3):
    with Vocabulary(tools, Path(sys.argv[1])) as vocabulary:
        vocabulary.count("hei")
    del vocabulary
    gc.collect()
llama = tools.bindings()
model = llama.Llama(sys.argv[1], n_ctx=32, verbose=True)
print(len(model.tokenize(b"hei")))
"""


def test_the_library_can_be_used_after_a_vocabulary_is_gone(tools, tiny):
    run = subprocess.run(
        [sys.executable, "-c", AFTERWARDS, str(tiny)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) > 1


def test_counts_are_those_of_the_program(tools, tiny, own_text):
    text = own_text(300)
    with Vocabulary(tools, tiny) as vocabulary:
        tokens = vocabulary.tokens(text.read_text())
    assert tokens[0] == 1 and len(tokens) == 300  # BOS counts


def test_text_of_more_tokens_than_bytes(tools, tmp_path):
    path = headers.whole(tmp_path / "m.gguf", headers.SPM)  # a blank is three bytes, each a token
    with Vocabulary(tools, path) as vocabulary:
        assert vocabulary.count(" a" * 100) == 1 + 3 + 100 * 4


def test_special_tokens_are_text_unless_asked(tools, tiny):
    with Vocabulary(tools, tiny) as plain, Vocabulary(tools, tiny, parse_special=True) as special:
        assert plain.count("<|chat|>") > special.count("<|chat|>") == 2


def test_a_file_that_is_no_model(tools, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tiny_model.write(tmp_path / "m.gguf").read_bytes()[:5000])
    with pytest.raises(BadModel), Vocabulary(tools, bad) as vocabulary:
        vocabulary.count("hei")
