"""What llama.cpp takes a model's metadata to be: a key that is absent has its default.

Converters differ in which defaults they write out, so a file with a default and one without the
key are the same model. The defaults are those of the pinned llama.cpp: ``llama_vocab::impl::load``
for tokenizers, ``llama_model_base::load_hparams`` for the rest.
"""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from imatrix_lab.models.gguf import ArraySummary, GgufHeader

_TOKENIZER = "tokenizer.ggml."
_FLAGS = {
    "llama": {"add_bos_token": True, "add_space_prefix": True},
    "bert": {"add_bos_token": True, "add_sep_token": True},
    "t5": {"add_eos_token": True},
}
_SPECIAL = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0, "mask": 103},
    "gpt2": {"bos": 11, "eos": 11},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
    "plamo2": {"bos": 1, "eos": 2, "unknown": 0, "padding": 3},
}
_SAME_CUT = (
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2"),
    ("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "a.x-4.0", "mellum", "exaone4"),
    ("glm4", "glm5"),
    ("gpt-4o", "llama4", "kanana2", "talkie"),
    ("bailingmoe", "bailingmoe2", "llada-moe"),
    ("tiny_aya", "cohere2moe"),
)
"""Names of one pre-tokenizer; the first stands for all."""
_ADD_BOS = {"llama-bpe", "tekken", "chameleon", "gemma4"}
_NO_BOS = {"chatglm-bpe", "glm4"}
_BPE = {"gpt2", "gemma4", "hybriddna", "whitespace"}


def tokenizer(header: GgufHeader) -> dict[str, Any]:
    """Return how a tokenizer works, by the keys' last words; long arrays are left out."""
    model = header.text(f"{_TOKENIZER}model")
    pre = _pre_tokenizer(header, model)
    settings: dict[str, Any] = {"model": model, "pre": pre}
    for name in ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix",
                 "remove_extra_whitespaces"):  # fmt: skip
        default = _FLAGS.get(model, {}).get(name, name == "add_bos_token" and pre in _ADD_BOS)
        settings[name] = header.metadata.get(_TOKENIZER + name, default)
    if pre == "gemma4":
        settings["add_bos_token"] = True  # whatever the file says
    special: Mapping[str, int] = {} if pre in _NO_BOS else _SPECIAL.get(model, {})
    for name in ("bos", "eos"):
        key = f"{_TOKENIZER}{name}_token_id"
        settings[f"{name}_token_id"] = header.metadata.get(key, special.get(name))
    return settings


def _pre_tokenizer(header: GgufHeader, model: str) -> str:
    if model not in _BPE:
        return "default"  # only BPE has pre-tokenizers
    if model == "gemma4":
        return "gemma4"
    name = header.text(f"{_TOKENIZER}pre") or "default"
    return next((names[0] for names in _SAME_CUT if name in names), name)


def hyperparameters(header: GgufHeader) -> dict[str, Any]:
    """Return an architecture's settings, by their keys without its name, with known defaults."""
    prefix = f"{header.text('general.architecture')}."
    values = {
        key.removeprefix(prefix): _plain(header, value)
        for key, value in header.metadata.items()
        if key.startswith(prefix)
    }
    channels, heads = values.get("embedding_length"), values.get("attention.head_count")
    if isinstance(channels, int) and isinstance(heads, int) and heads:
        values.setdefault("attention.key_length", channels // heads)
        values.setdefault("attention.value_length", channels // heads)
        values.setdefault("rope.dimension_count", values["attention.key_length"])
    if "attention.key_length" in values:
        values.setdefault("attention.key_length_swa", values["attention.key_length"])
        values.setdefault("attention.value_length_swa", values.get("attention.value_length"))
        values.setdefault("rope.dimension_count_swa", values.get("rope.dimension_count"))
    values.setdefault("attention.head_count_kv", heads)
    for key, default in _DEFAULTS.items():
        values.setdefault(key, default)
    return _without_idle_rope(values)


_DEFAULTS = {
    "attention.causal": True,
    "nextn_predict_layers": 0,
    "pooling_type": -1,
    "rope.freq_base": 10000.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.finetuned": False,
}
_NO_SCALING = {"", "none", "linear"}


def _without_idle_rope(values: dict[str, Any]) -> dict[str, Any]:
    """Drop what does nothing: a scale of 1, and the context's length where nothing is scaled."""
    factor = values.pop("rope.scale_linear", 0.0)
    factor = values.pop("rope.scaling.factor", factor) or 1.0
    trained = values.pop("context_length", None)
    kind = values.pop("rope.scaling.type", "")
    original = values.pop("rope.scaling.original_context_length", trained)
    values.pop("vocab_size", None)  # the tokens are compared themselves
    scaled = kind not in _NO_SCALING
    if not scaled and (kind == "none" or factor == 1.0):
        kind, factor = "none", 1.0
    values["rope.scaling.type"], values["rope.scaling.factor"] = kind or "linear", factor
    if scaled:
        values["rope.scaling.original_context_length"] = original
    return values


_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1",
            10: "<u8", 11: "<i8", 12: "<f8"}  # fmt: skip
"""Type codes of numbers, and how numpy calls them."""


def _plain(header: GgufHeader, value: Any) -> Any:
    """Return one number for a list of equal ones, and floats as float32 has them."""
    if isinstance(value, ArraySummary) and value.element_type in _NUMBERS:
        dtype = np.dtype(_NUMBERS[value.element_type])
        value = np.fromfile(header.path, dtype, value.length, offset=value.span[0]).tolist()
    if isinstance(value, list) and value and all(entry == value[0] for entry in value):
        value = value[0]
    if isinstance(value, float):
        try:
            return struct.unpack("<f", struct.pack("<f", value))[0]
        except OverflowError:
            return value
    return value
