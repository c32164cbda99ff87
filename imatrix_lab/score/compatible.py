"""Whether a quant may be scored against a reference; reads headers and small tensors only."""

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from imatrix_lab.errors import BadModel
from imatrix_lab.models import effective, scaling
from imatrix_lab.models.gguf import ArraySummary, GgufHeader, TensorInfo, read_header
from imatrix_lab.types import Model

_MERGED_BY = {"gpt2": ("merges",), "gemma4": ("merges",), "llama": ("scores",), "t5": ("scores",)}
"""The lists by which a kind of tokenizer cuts text, beside its tokens."""
_UNUSED = ("pre", "eos_token_id")
"""What is noted alone: the reference's tokenizer cuts the text, and nothing is generated."""
_LEAST_COSINE = 0.5
"""Of a quantized matrix with its original. One bit a weight leaves 0.8; unrelated ones have 0.0."""

_EMBEDDING, _TIED_COSINE = "token_embd.weight", 0.9
"""llama.cpp multiplies by the embedding where a model has no output matrix of its own."""

_ORIGINAL_BITS = 15.0
"""Originals have F16, BF16 or F32, and perhaps a few tensors in a smaller type."""

Tensors = dict[str, tuple[Path, TensorInfo]]  # by name, with the file each is in


def check(reference: Model, quants: list[Model]) -> list[str]:
    """Raise unless every quant has the reference's architecture, vocabulary and tensors.

    Returns warnings about quants whose normalization weights, which no quantizer changes, are not
    the reference's: their divergence is not that of quantization alone. Channels that AWQ scaled
    have other weights, and norms, that compute the same.
    """
    header, tensors = _read(reference)
    norms, warnings = _norms(tensors), []
    for quant in quants:
        quant_header, quant_tensors = _read(quant)
        warnings += _same_metadata(header, quant_header, quant)
        _same_shapes(tensors, quant_tensors, quant)
        if scaling.is_scaled(quant_header):
            continue
        _same_weights(tensors, quant_tensors, quant)
        if norms != _norms(quant_tensors):
            why = "so it is not a quantization of this reference alone (another fine-tune?)"
            warnings.append(f"{quant.label}: its norm weights are not the reference's, {why}")
    return warnings


def is_recurrent(model: Model) -> bool:
    """Return whether a model keeps a state besides attention's, so that windows go one by one."""
    keys = read_header(model.path).metadata
    return any(".ssm." in key or ".wkv." in key or "shortconv" in key for key in keys)


def suspicions(reference: Model, quants: list[Model]) -> list[str]:
    """Return warnings about quants that seem to be the original, or are the reference.

    The latter is a control (see `compare.controls`), which a user may want.
    """
    own, warnings = reference.facts.bits_per_weight, []
    for quant in quants:
        bits = quant.facts.bits_per_weight
        if quant.sha256 == reference.sha256:
            what = f"{quant.path.name} is the reference itself, a control of the method"
            warnings.append(f"{what}: its divergence is 0, and says nothing of a quant")
        elif own < _ORIGINAL_BITS and bits > own:
            what = f"the reference has {own:.2f} bits a weight, {quant.path.name} has {bits:.2f}"
            warnings.append(f"{what}: are they swapped? --reference is the original")
    return warnings


def _read(model: Model) -> tuple[GgufHeader, Tensors]:
    headers = [read_header(path) for path in model.shards]
    return headers[0], {t.name: (h.path, t) for h in headers for t in h.tensors}


def _other_model(quant: Model, what: str) -> BadModel:
    what = f"{quant.label} is not a quant of the reference: {what}"
    fix = "score each quant against the model it was made from: --reference"
    return BadModel(what, where=quant.path, fix=fix)


def _same_metadata(reference: GgufHeader, other: GgufHeader, quant: Model) -> list[str]:
    """Raise if a setting of the architecture or the tokenizer differs, written out or by default.

    Returns warnings about what differs without changing a score.
    """
    architecture = reference.text("general.architecture")
    if (own := other.text("general.architecture")) != architecture:
        raise _differs(quant, "general.architecture", own, architecture)
    ours, others = effective.hyperparameters(reference), effective.hyperparameters(other)
    for key in sorted(ours.keys() & others.keys()):
        if ours[key] != others[key]:
            raise _differs(quant, f"{architecture}.{key}", others[key], ours[key])
    ours, others = effective.tokenizer(reference), effective.tokenizer(other)
    differing = [key for key in ours if ours[key] != others[key]]
    for key in differing:
        if key not in _UNUSED:
            raise _differs(quant, f"tokenizer.ggml.{key}", others[key], ours[key])
    for name in ("tokens", *_MERGED_BY.get(ours["model"], ())):
        digests = [_digest(header, f"tokenizer.ggml.{name}") for header in (reference, other)]
        if digests[0] != digests[1] and (name == "tokens" or None not in digests):
            raise _other_model(quant, f"tokenizer.ggml.{name} differs")
    return [
        f"{quant.label}: tokenizer.ggml.{key} is {others[key]!r}, in the reference {ours[key]!r};"
        " no score changes, since the reference's tokenizer is used for both"
        for key in differing
    ]


def _differs(quant: Model, key: str, value: Any, expected: Any) -> BadModel:
    return _other_model(quant, f"{key} differs ({value!r}, in the reference {expected!r})")


def _digest(header: GgufHeader, key: str) -> Any:
    """Return a list, or of a long one the sha256 of its bytes."""
    value = header.metadata.get(key)
    if not isinstance(value, ArraySummary):
        return value
    start, end = value.span
    return hashlib.sha256(_bytes(header.path, start, end - start)).digest()


def _bytes(path: Path, offset: int, size: int) -> bytes:
    return np.fromfile(path, np.uint8, size, offset=offset).tobytes()


def _same_shapes(reference: Tensors, other: Tensors, quant: Model) -> None:
    for name in sorted(reference.keys() | other.keys()):
        shapes = [t[name][1].shape if name in t else None for t in (other, reference)]
        if shapes[0] != shapes[1] and not _is_tied_output(name, reference, other):
            words = [str(list(s)) if s else "missing" for s in shapes]
            raise _other_model(quant, f"tensor {name} is {words[0]}, in the reference {words[1]}")


def _is_tied_output(name: str, *models: Tensors) -> bool:
    """Whether an output matrix that one model lacks is the other's token embedding, repeated."""
    tensors = next((t for t in models if name in t), {})
    if name != "output.weight" or _EMBEDDING not in tensors or all(name in t for t in models):
        return False
    embedding, output = tensors[_EMBEDDING], tensors[name]
    return embedding[1].shape == output[1].shape and _cosine(embedding, output) > _TIED_COSINE


def _same_weights(reference: Tensors, other: Tensors, quant: Model) -> None:
    """Raise if some rows of a matrix have nothing to do with the reference's."""
    weights = (n for n in sorted(reference) if n.startswith("blk.") and n.endswith(".weight"))
    name = next((n for n in weights if sum(d > 1 for d in reference[n][1].shape) == 2), None)
    if name is None:
        return
    if _cosine(reference[name], other[name]) < _LEAST_COSINE:
        raise _other_model(quant, f"{name} is another matrix")


def _cosine(*matrices: tuple[Path, TensorInfo]) -> float:
    """Return how alike the first rows of two matrices are; 1 where gguf-py cannot read them."""
    rows = []
    for path, tensor in matrices:
        try:
            quant_type = gguf.GGMLQuantizationType[tensor.type_name]
            n_rows = tensor.n_elements // tensor.shape[0]
            n_read = min(16, n_rows)
            raw = _bytes(path, tensor.offset, tensor.size_bytes // n_rows * n_read)
            packed = np.frombuffer(raw, np.uint8).reshape(n_read, -1)
            rows.append(gguf.dequantize(packed, quant_type).ravel().astype(np.float64))
        except (KeyError, NotImplementedError):
            return 1.0
    a, b = rows
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 1.0


def _norms(tensors: Tensors) -> dict[str, bytes]:
    """Return the bytes of the F32 normalization weights."""
    return {
        name: _bytes(path, tensor.offset, tensor.size_bytes)
        for name, (path, tensor) in tensors.items()
        if name.endswith("_norm.weight") and tensor.type_name == "F32"
    }
