"""The names that we know are those that the library knows."""

import importlib.util
import re
import sys

import pytest

from imatrix_lab.errors import BadModel
from imatrix_lab.llamacpp import known
from imatrix_lab.models.tokenizer import Vocabulary, silence
from tests.models import headers


def refusal(tools, path):
    """Why the library does not load a file's vocabulary, or ""."""
    with Vocabulary(tools, path) as vocabulary:
        try:
            vocabulary.n_tokens()
        except BadModel as error:
            return error.what
    return ""


def test_pre_tokenizers(tools, tmp_path):
    converter = tools.convert_script.parent / "conversion" / "base.py"
    written = set(re.findall(r'^ +res = "(.+)"$', converter.read_text(), re.MULTILINE))
    assert len(written) > 50
    accepted = set()
    for i, name in enumerate(sorted(known.PRE_TOKENIZERS | written | {"of-next-year"})):
        pre = {"tokenizer.ggml.pre": name}
        path = headers.write(tmp_path / f"{i}", "llama", headers.BPE, pre)
        if why := refusal(tools, path):
            assert f"unknown pre-tokenizer type: '{name}'" in why
        else:
            accepted.add(name)
    assert accepted == known.PRE_TOKENIZERS


@pytest.fixture(scope="module")
def pinned_names(tools):
    """The architectures in the gguf-py that belongs to the pinned llama.cpp."""
    path = tools.convert_script.parent / "gguf-py" / "gguf" / "constants.py"
    spec = importlib.util.spec_from_file_location("pinned_constants", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return set(module.MODEL_ARCH_NAMES.values())


def test_architectures(tools, tmp_path, pinned_names):
    assert pinned_names - known.ARCHITECTURES == set()
    unknown = headers.write(tmp_path / "unknown", "qwen9", headers.SPM)
    assert "unknown model architecture: 'qwen9'" in refusal(tools, unknown)
    encoders, diffusion = set(), set()
    llama = tools.bindings()
    silence(llama)
    for name in sorted(known.ARCHITECTURES - {"clip"}):
        path = headers.write(tmp_path / name, name, headers.SPM)
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = True
        model = llama.llama_model_load_from_file(str(path).encode(), parameters)
        if not model:
            assert "unknown model architecture" not in refusal(tools, path), name
            continue
        encoders |= {name} if llama.llama_model_has_encoder(model) else set()
        diffusion |= {name} if llama.llama_model_is_diffusion(model) else set()
        llama.llama_model_free(model)
    assert (encoders, diffusion) == (known.ENCODERS, known.DIFFUSION)


def test_tokenizers(tools, tmp_path):
    every = headers.BPE | {"tokenizer.ggml.scores": [0.0] * 4}
    for name in sorted(known.TOKENIZERS | known.NO_TOKENIZER):
        model = {"tokenizer.ggml.model": name, "tokenizer.ggml.pre": "default"}
        path = headers.write(tmp_path / name, "llama", every, model)
        assert "unknown tokenizer" not in refusal(tools, path)
    path = headers.write(tmp_path / "next", "llama", every, {"tokenizer.ggml.model": "next"})
    assert "unknown tokenizer: 'next'" in refusal(tools, path)
