"""Whether a quant may be scored against a reference; reads headers and small tensors only."""

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from imatrix_lab.errors import BadModel
from imatrix_lab.models.gguf import ArraySummary, GgufHeader, TensorInfo, read_header
from imatrix_lab.types import Model

_VOCABULARY = tuple(
    f"tokenizer.ggml.{name}"
    for name in (
        "model", "pre", "tokens", "merges", "scores", "token_type",
        "bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token", "add_space_prefix",
    )
)  # fmt: skip
_LEAST_COSINE = 0.5
"""Of a quantized matrix with its original. One bit a weight leaves 0.8; unrelated ones have 0.0."""

Tensors = dict[str, tuple[Path, TensorInfo]]
"""A model's tensors by name, with their files."""


def check(reference: Model, quants: list[Model]) -> list[str]:
    """Raise unless every quant has the reference's architecture, vocabulary and tensors.

    Returns warnings about quants whose normalization weights, which no quantizer changes, are not
    the reference's: their divergence is not that of quantization alone.
    """
    header, tensors = _read(reference)
    norms, warnings = _norms(tensors), []
    for quant in quants:
        quant_header, quant_tensors = _read(quant)
        _same_metadata(header, quant_header, quant)
        _same_shapes(tensors, quant_tensors, quant)
        _same_weights(tensors, quant_tensors, quant)
        if norms != _norms(quant_tensors):
            warnings.append(
                f"{quant.label}: its norm weights are not the reference's, so it is not"
                " a quantization of this reference alone (another fine-tune?)"
            )
    return warnings


def is_recurrent(model: Model) -> bool:
    """Return whether a model keeps a state besides attention's, so that windows go one by one."""
    keys = read_header(model.path).metadata
    return any(".ssm." in key or ".wkv." in key or "shortconv" in key for key in keys)


def _read(model: Model) -> tuple[GgufHeader, Tensors]:
    headers = [read_header(path) for path in model.shards]
    return headers[0], {t.name: (h.path, t) for h in headers for t in h.tensors}


def _other_model(quant: Model, what: str) -> BadModel:
    return BadModel(
        f"{quant.label} is not a quant of the reference: {what}",
        where=quant.path,
        fix="score each quant against the model it was made from: --reference",
    )


def _same_metadata(reference: GgufHeader, other: GgufHeader, quant: Model) -> None:
    architecture = reference.text("general.architecture")
    shared = reference.metadata.keys() & other.metadata.keys()
    hyperparameters = sorted(key for key in shared if key.startswith(f"{architecture}."))
    for key in ("general.architecture", *_VOCABULARY, *hyperparameters):
        expected, value = _value(reference, key), _value(other, key)
        if expected != value:
            both = f" ({value!r}, in the reference {expected!r})"
            raise _other_model(quant, f"{key} differs{'' if isinstance(expected, bytes) else both}")


def _value(header: GgufHeader, key: str) -> Any:
    """Return a value; of a long array the sha256 of its bytes."""
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
        if shapes[0] != shapes[1]:
            words = [str(list(s)) if s else "missing" for s in shapes]
            raise _other_model(quant, f"tensor {name} is {words[0]}, in the reference {words[1]}")


def _same_weights(reference: Tensors, other: Tensors, quant: Model) -> None:
    """Raise if some rows of a matrix have nothing to do with the reference's."""
    weights = (n for n in sorted(reference) if n.startswith("blk.") and n.endswith(".weight"))
    name = next((n for n in weights if sum(d > 1 for d in reference[n][1].shape) == 2), None)
    if name is None:
        return
    rows = []
    for path, tensor in (reference[name], other[name]):
        try:
            quant_type = gguf.GGMLQuantizationType[tensor.type_name]
            n_rows = tensor.n_elements // tensor.shape[0]
            n_read = min(16, n_rows)
            raw = _bytes(path, tensor.offset, tensor.size_bytes // n_rows * n_read)
            packed = np.frombuffer(raw, np.uint8).reshape(n_read, -1)
            rows.append(gguf.dequantize(packed, quant_type).ravel().astype(np.float64))
        except (KeyError, NotImplementedError):  # a type that gguf-py cannot read
            return
    a, b = rows
    scale = float(np.sqrt((a @ a) * (b @ b)))
    if scale > 0 and a @ b < _LEAST_COSINE * scale:
        raise _other_model(quant, f"{name} is another matrix")


def _norms(tensors: Tensors) -> dict[str, bytes]:
    """Return the bytes of the F32 normalization weights."""
    return {
        name: _bytes(path, tensor.offset, tensor.size_bytes)
        for name, (path, tensor) in tensors.items()
        if name.endswith("_norm.weight") and tensor.type_name == "F32"
    }
