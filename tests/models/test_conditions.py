"""What is said of a model before llama.cpp aborts, fails or warns; and that what is said helps."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadModel
from imatrix_lab.imatrix import format
from imatrix_lab.models import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import tune
from imatrix_lab.types import ComputeOptions, Request
from tests import tiny_model
from tests.models import headers
from tests.models.headers import BPE, SPM

STOPPED = {
    "architecture": ("qwen9", [SPM], "qwen9"),
    "image model": ("flux", [{}], "flux"),
    "pre-tokenizer": ("llama", [BPE, {"tokenizer.ggml.pre": "of-next-year"}], "of-next-year"),
    "tokenizer": ("llama", [BPE, {"tokenizer.ggml.model": "next"}], "'next'"),
    "merges": ("llama", [BPE, {"tokenizer.ggml.merges": None}], "merges"),
    "no tokenizer": ("llama", [{}], "no tokenizer"),
    "no vocabulary": ("llama", [{"tokenizer.ggml.model": "no_vocab"}], "no tokenizer"),
    "vision tower": ("clip", [{"clip.has_vision_encoder": True}], "vision tower"),
    "audio tower": ("clip", [{"clip.has_audio_encoder": True}], "audio tower"),
    "mmproj": ("llama", [{"general.type": "mmproj"}], "mmproj"),
    "bert": ("bert", [SPM, {"bert.attention.causal": False}], "both directions"),
    "bert without the key": ("nomic-bert", [SPM], "both directions"),
    "embedding Gemma": ("gemma-embedding", [SPM], "both directions"),
    "bidirectional": ("llama", [SPM, {"llama.attention.causal": False}], "both directions"),
    "encoder": ("t5", [SPM], "encoder"),
    "diffusion": ("llada", [SPM], "diffusion"),
    "draft": ("eagle3", [SPM], "drafts"),
    "no layers": ("llama", [SPM, {"llama.block_count": None}], "llama.block_count"),
    "0 layers": ("llama", [SPM, {"llama.block_count": 0}], "llama.block_count"),
    "no first token": (
        "llama",
        [BPE, {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.model": "gemma4"}],
        "does not name",
    ),
    "first token of none": (
        "llama",
        [BPE, {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 7}],
        "token 7",
    ),
    "speech": ("wavtokenizer-dec", [{}], "sound"),
}
NOTED = {
    "missing pre-tokenizer": ("llama", [BPE, {"tokenizer.ggml.pre": None}], "pre-tokenizer"),
    "end token": ("llama", [SPM, {"tokenizer.ggml.add_eos_token": True}], "end token"),
    "embeddings": ("qwen3", [BPE, {"qwen3.pooling_type": 3}], "an embedding model"),
    "reranker": ("qwen3", [BPE, {"qwen3.pooling_type": 4}], "a reranker"),
    "MTP": ("glm4moe", [BPE, {"glm4moe.nextn_predict_layers": 1}], "MTP"),
}
NO_MODELS = {
    "adapter": ({"general.type": "adapter"}, 1, "LoRA"),
    "imatrix": ({"general.type": "imatrix"}, 1, "imatrix show"),
    "vocabulary": (SPM, 0, "vocabulary without weights"),
    "one of a split": ({"split.count": 3, "split.no": 1, "split.tensors.count": 9}, 1, "2 of 3"),
    "next year's": ({"general.type": "hologram"}, 1, "hologram"),
}


def conditions(path):
    return resolve.facts((path,)).conditions


@pytest.mark.parametrize("name", STOPPED)
def test_what_stops_a_model(name, tmp_path):
    architecture, parts, word = STOPPED[name]
    path = headers.write(tmp_path / "m.gguf", architecture, *parts)
    with pytest.raises(BadModel) as caught:
        resolve.check_spec(str(path))
    assert word in caught.value.what and "damaged" not in str(caught.value)
    assert caught.value.fix and "{" not in caught.value.fix
    assert conditions(path)[0].what in caught.value.what


@pytest.mark.parametrize("name", NOTED)
def test_what_is_noted(name, tmp_path):
    architecture, parts, word = NOTED[name]
    path = headers.write(tmp_path / "m.gguf", architecture, *parts)
    (condition,) = conditions(path)
    assert word in condition.what and not condition.stops
    resolve.check_spec(str(path))


def test_a_plain_model_has_nothing_to_note(tiny, tmp_path):
    assert conditions(tiny) == ()
    assert conditions(headers.write(tmp_path / "m.gguf", "qwen3", BPE)) == ()
    kimi = {"tokenizer.ggml.pre": "kimi-k2", "tokenizer.ggml.merges": None}
    assert conditions(headers.write(tmp_path / "k.gguf", "deepseek2", BPE, kimi)) == ()
    no_end = {"tokenizer.ggml.add_eos_token": False}
    assert conditions(headers.write(tmp_path / "e.gguf", "llama", SPM, no_end)) == ()


@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model(name, tmp_path):
    metadata, n_tensors, word = NO_MODELS[name]
    path = headers.write(tmp_path / "m.gguf", "llama", metadata, n=n_tensors)
    with pytest.raises(BadModel) as caught:
        resolve.check_spec(str(path))
    assert word in str(caught.value) and caught.value.fix


class Heard(Silent):
    """Collects what is said."""

    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


def request(model, text):
    return Request(str(text), (), str(model), 10**6, Path(), ComputeOptions("cpu", 1, 128))


def with_metadata(source, target, *options):
    """A copy of a model with other metadata, by the program that our remedies name."""
    program = Path(sys.executable).with_name("gguf-new-metadata")
    argv = [program, *options, source, target]
    subprocess.run(list(map(str, argv)), check=True, capture_output=True)
    return target


def test_a_model_that_adds_an_end_token_has_the_imatrix_of_one_that_does_not(
    tiny, own_text, tmp_path
):
    ends = tiny_model.write(
        tmp_path / "ends-f16.gguf", extra=lambda writer: writer.add_add_eos_token(True)
    )
    text, session = own_text(5 * 128), Session(Store(), heard := Heard())
    theirs = format.read(tune.imatrix(request(tiny, text), tmp_path / "a.gguf", session))
    ours = format.read(tune.imatrix(request(ends, text), tmp_path / "b.gguf", session))
    assert ours.entries.keys() == theirs.entries.keys() and ours.entries
    for name, entry in ours.entries.items():
        assert (entry.sums == theirs.entries[name].sums).all()
    assert sum("end token" in line for line in heard.lines) == 1


def test_a_missing_pre_tokenizer_is_said_once_and_the_remedy_helps(tools, tmp_path):
    old = headers.whole(tmp_path / "old.gguf", BPE, {"tokenizer.ggml.pre": None})
    session = Session(Store(), heard := Heard())
    for _ in range(2):
        resolve.resolve_to_run(str(old), session, tools)
    assert sum("pre-tokenizer" in line for line in heard.lines) == 1
    assert "gguf-new-metadata --pre-tokenizer NAME old.gguf" in conditions(old)[0].fix
    new = with_metadata(old, tmp_path / "new.gguf", "--pre-tokenizer", "llama-bpe")
    assert conditions(new) == ()


def test_a_first_token_that_is_missing_can_be_named(tools, tmp_path):
    adds = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 7}
    path = headers.whole(tmp_path / "m.gguf", BPE, adds)
    assert "gguf-new-metadata --special-token-by-id bos N m.gguf" in conditions(path)[0].fix
    new = with_metadata(path, tmp_path / "new.gguf", "--special-token-by-id", "bos", "0", "--force")
    assert conditions(new) == ()
    with Vocabulary(tools, new) as vocabulary:
        assert vocabulary.tokens("ab") == [0, 3]


def test_what_llama_cpp_warns_of_is_said_once(tools, tmp_path):
    tokens = {"tokenizer.ggml.tokens": ["</s>", "<eos>", "a", "b"], "tokenizer.ggml.merges": []}
    kinds = {"tokenizer.ggml.token_type": [1, 1, 1, 1], "tokenizer.ggml.merges": ["a b"]}
    path = headers.whole(tmp_path / "m.gguf", BPE, tokens, kinds)
    session = Session(Store(), heard := Heard())
    for _ in range(2):
        resolve.resolve_to_run(str(path), session, tools)
    (line,) = [line for line in heard.lines if "control-looking" in line]
    assert "m.gguf" in line and "load:" not in line


REFUSED = {
    "token types": ({"tokenizer.ggml.token_type": [1]}, "Index out of array bounds for toktypes"),
    "heads": ({"llama.attention.head_count": None}, "attn_q.weight' has wrong shape"),
    "layers": ({"llama.block_count": 2}, "tensor 'blk.1.attn_norm.weight' not found"),
    "shapes": ({"llama.feed_forward_length": 64}, "ffn_gate.weight' has wrong shape"),
    "an abort": ({"tokenizer.ggml.pre": "llama-bpe"}, r"GGML_ASSERT\(vocab.token_bos"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_refuses_comes_with_its_reason_before_any_work(name, tools, tmp_path):
    metadata, why = REFUSED[name]
    good, bad = headers.whole(tmp_path / "a.gguf", BPE), tmp_path / "b.gguf"
    resolve.resolve_to_run(str(good), Session(Store(), Silent()), tools)
    headers.whole(bad, BPE, metadata)
    resolve.check_spec(str(bad))
    with pytest.raises(BadModel, match=why) as caught:
        resolve.resolve_to_run(str(bad), Session(Store(), Silent()), tools)
    assert str(bad) == caught.value.where


def test_a_tower_can_be_quantized_as_it_is_said(tools, tmp_path, monkeypatch):
    metadata = {"clip.has_vision_encoder": True}
    path = headers.write(tmp_path / "mmproj.gguf", "clip", metadata)
    command = conditions(path)[0].fix.rpartition(": ")[2]
    assert command.startswith('"$(imatrix-lab toolchain path)/llama-quantize" mmproj.gguf')
    program = str(tools.program("llama-quantize"))
    arguments = command.partition('" ')[2].split()
    assert shutil.which(program)
    subprocess.run([program, *arguments], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "OUT.gguf").exists()
