"""What llama.cpp will make of a model, told from its header before anything is built or run.

Its programs abort, fail or warn in the middle of the work; here it is said what the file is,
whether text can be run through it, and what to do. The names are those of `llamacpp.known`.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from imatrix_lab.errors import BadModel
from imatrix_lab.llamacpp import known, programs
from imatrix_lab.models import foreign
from imatrix_lab.models.gguf import ArraySummary, GgufHeader, TensorInfo
from imatrix_lab.types import Condition, ModelFacts

_HERE = f"llama.cpp {programs.COMMIT}, which is used here,"
_QUANTIZE = '"$(imatrix-lab toolchain path)/llama-quantize" {name} OUT.gguf Q8_0'
_ALONE = f"to quantize it without an imatrix: {_QUANTIZE}"
_CONVERT = "imatrix-lab model fetch hf:ORG/REPO, the original on the Hub: it is converted anew"
_SET_PRE = "gguf-new-metadata --pre-tokenizer NAME {name} NEW.gguf, NAME as in llama.cpp's source"
_SET_BOS = "gguf-new-metadata --special-token-by-id bos N {name} NEW.gguf, N as in the original"
_POOLS_BY_RANK = 4


def require_model(header: GgufHeader, path: Path) -> None:
    """Raise BadModel for a GGUF file that is something else: an adapter, an imatrix."""
    kind, arch = header.text("general.type", "model"), header.text("general.architecture")
    if kind == "imatrix":
        what, fix = "an importance matrix, not a model", f"imatrix-lab imatrix show {path.name}"
    elif arch == "controlvector":
        what, fix = "a control vector, not a model", "give the model that it steers"
    elif kind == "adapter":
        what = "an adapter (LoRA), not a model: it has no weights of its own to quantize"
        fix = "give its base model; or merge both with llama.cpp's llama-export-lora, which is not"
        fix += " built here, and give the merged model"
    elif kind not in ("model", "mmproj"):
        what, fix = f"a GGUF file of the type {kind!r}, not a model", "give the model's file"
    elif not arch:
        what, fix = "this GGUF file names no architecture, so it is not a model", _CONVERT
    elif not header.tensors and header.integer("split.count") < 2:
        what = "a vocabulary without weights: no tensors are in this file"
        fix = "give the model's own file"
    else:
        return
    raise BadModel(what, where=path, fix=fix)


def of(header: GgufHeader, tensors: Sequence[TensorInfo]) -> tuple[Condition, ...]:
    """Return what there is to know before a model is run; if something stops it, that first."""
    every: list[Condition] = []
    for look in (_types, _architecture, _tokenizer, _whole):
        if not any(condition.stops for condition in every):  # else what follows from it
            every += look(header, tensors)
    name = header.path.name
    every = [Condition(c.what, c.fix.format(name=name), c.stops) for c in every]
    return tuple(sorted(every, key=lambda c: not c.stops))


def _types(header: GgufHeader, tensors: Sequence[TensorInfo]) -> Iterator[Condition]:
    known_types = {t.type_name for t in tensors if not t.type_name.startswith("type ")}
    names = {t.type_name for t in tensors} - known_types
    if codes := sorted(int(name.removeprefix("type ")) for name in names):
        n = sum(t.type_name in names for t in tensors)
        listed = ", ".join(map(str, codes))
        what = f"{_HERE} does not know the type of {n} of {len(tensors)} tensors (number {listed};"
        what += f" {foreign.type_origin(codes)})"
        fix = "use an F16, BF16 or F32 file of this model; these quants run in the program they"
        yield Condition(what, f"{fix} were made for")


def _architecture(header: GgufHeader, tensors: Sequence[TensorInfo]) -> Iterator[Condition]:
    arch = header.text("general.architecture")
    causal = header.metadata.get(f"{arch}.attention.causal", True)
    if arch.startswith("clip") or header.text("general.type") == "mmproj":
        what = f"a {_tower(header)} (mmproj), not a language model: it reads no text"
        fix = "give the language model, and lay this file beside its quants as it is"
        yield Condition(what, f"{fix}; {_ALONE}")
    elif arch not in known.ARCHITECTURES:
        what = f"{_HERE} does not know the architecture {arch!r}: it is newer, or of another"
        what += " program (ik_llama.cpp, stable-diffusion.cpp, ComfyUI-GGUF, a fork)"
        yield Condition(what, "use a newer imatrix_lab, or the program that the model was made for")
    elif arch in known.DRAFTS:
        what = f"{arch} is a head that drafts tokens for another model, and does not run alone"
        yield Condition(what, f"give the model it drafts for; {_ALONE}")
    elif arch in known.SPEECH:
        yield Condition(f"{arch} makes sound: it predicts no next word of a text", _ALONE)
    elif arch in known.DIFFUSION:
        what = f"{arch} is a diffusion model: it fills in masked words and predicts no next word,"
        what += " so an imatrix, a perplexity and a KLD of text are not defined here"
        yield Condition(what, _ALONE)
    elif arch in known.ENCODERS:
        what = f"{arch} has an encoder, which llama-imatrix, llama-perplexity and score do not run"
        yield Condition(what, _ALONE)
    elif arch in known.BIDIRECTIONAL or causal is False:
        what = f"{arch} reads text in both directions (for embeddings, say): it predicts no next"
        what += " word, so an imatrix, a perplexity and a KLD of text are not defined here"
        yield Condition(what, _ALONE)
    elif pooling := header.integer(f"{arch}.pooling_type"):
        kind = "a reranker" if pooling == _POOLS_BY_RANK else "an embedding model"
        what = f"{kind}: imatrix, perplexity and KLD are those of the language model inside, and"
        what += " say little of its vectors or ranks"
        yield Condition(what, "measure the quants on your retrieval task too", stops=False)
    if n := header.integer(f"{arch}.nextn_predict_layers"):
        what = f"it has layers for multi-token prediction (MTP, {n} of them): llama-imatrix does"
        what += " not run them, so their tensors are quantized without an imatrix"
        types = ", ".join(t for t in programs.QUANT_TYPES if t in programs.NEED_EVERY_LAYER)
        yield Condition(what, f"types other than {types}, which need one", stops=False)


def _whole(header: GgufHeader, tensors: Sequence[TensorInfo]) -> Iterator[Condition]:
    """Yield what a model of a known architecture lacks, however it came about."""
    arch = header.text("general.architecture")
    keys = [f"{arch}.{name}" for name in ("block_count", "context_length", "embedding_length")]
    missing = [key for key in keys if header.integer(key) < 1]
    missing += [] if any(t.name == "token_embd.weight" for t in tensors) else ["token_embd.weight"]
    if missing:
        what = f"llama.cpp cannot load this model, which lacks {', '.join(missing)}"
        yield Condition(what, _CONVERT)
    adds = header.metadata.get("tokenizer.ggml.add_bos_token", False) is True
    known_bos = "tokenizer.ggml.bos_token_id" in header.metadata
    by_default = known.BOS.get(header.text("tokenizer.ggml.model"), sys.maxsize)
    bos = header.integer("tokenizer.ggml.bos_token_id", by_default)
    if adds and bos >= _length(header, "tokenizer.ggml.tokens"):
        token = f"{bos}, which it does not have" if known_bos else "that the file does not name"
        what = f"its tokenizer begins every text with a token {token}: llama.cpp would abort"
        yield Condition(what, _SET_BOS)


def _tower(header: GgufHeader) -> str:
    """Return the senses of an mmproj file in words."""
    senses = {"vision": "vision", "audio": "audio"}
    has = [name for name in senses if header.metadata.get(f"clip.has_{name}_encoder") is True]
    return f"{' and '.join(has) or 'vision'} tower"


def _tokenizer(header: GgufHeader, tensors: Sequence[TensorInfo]) -> Iterator[Condition]:
    arch, name = header.text("general.architecture"), header.text("tokenizer.ggml.model")
    if arch.startswith("clip") or header.text("general.type") == "mmproj":
        return
    if not name or name in known.NO_TOKENIZER or not _length(header, "tokenizer.ggml.tokens"):
        yield Condition("this file has no tokenizer, so it cannot read text", _CONVERT)
        return
    if name not in known.TOKENIZERS:
        what = f"{_HERE} does not know the tokenizer {name!r}"
        yield Condition(what, "use a newer imatrix_lab, or the program that the model was made for")
        return
    pre = "gemma4" if name == "gemma4" else header.text("tokenizer.ggml.pre")
    if name in known.BPE:
        if "tokenizer.ggml.merges" not in header.metadata and pre != "kimi-k2":
            yield Condition("its tokenizer lacks the merges of BPE (an old conversion)", _CONVERT)
        if not pre:
            what = "the file does not name its pre-tokenizer (an old conversion): llama.cpp splits"
            what += " text by a default, perhaps not as the model learned it, which degrades all"
            yield Condition(what, f"{_CONVERT}; or {_SET_PRE}", stops=False)
        elif pre not in known.PRE_TOKENIZERS:
            what = f"{_HERE} does not know the pre-tokenizer {pre!r}: it is newer, or a fork's"
            yield Condition(
                what, f"use a newer imatrix_lab; if it is an old one renamed: {_SET_PRE}"
            )
    if adds_end(header):
        what = "it adds an end token to every text; it is left out here, as llama.cpp's tools need"
        yield Condition(what, "", stops=False)


def adds_end(header: GgufHeader) -> bool:
    """Return whether llama.cpp would end every text with an end token."""
    by_default = header.text("tokenizer.ggml.model") == "t5"
    return header.metadata.get("tokenizer.ggml.add_eos_token", by_default) is True


def _length(header: GgufHeader, key: str) -> int:
    value: Any = header.metadata.get(key)
    return value.length if isinstance(value, ArraySummary) else len(value or ())


def require_text(model: ModelFacts, path: Path) -> None:
    """Raise BadModel if text cannot be run through a model."""
    stopping = [c for c in model.conditions if c.stops]
    if stopping:
        more = "".join(f"; also: {c.what}" for c in stopping[1:])
        raise BadModel(stopping[0].what + more, where=path, fix=stopping[0].fix)
