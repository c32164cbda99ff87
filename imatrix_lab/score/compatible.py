"""Whether a quant may be scored against a reference; headers and small tensors only."""

import hashlib
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
_NORM = "_norm.weight"
_ROWS = 16
_LEAST_COSINE = 0.5
"""Of a quantized matrix with its original. One bit a weight leaves 0.8; strangers have 0.0."""
_FIX = "score each quant against the model it was made from: --reference"


def check(reference: Model, quants: list[Model]) -> list[str]:
    """Raise unless every quant has the reference's architecture and vocabulary.

    Returns
    -------
    Warnings: quants whose normalization weights, which no quantizer changes, are not the
    reference's, so that their divergence is not that of quantization alone.

    Raises
    ------
    BadModel : names what differs.
    """
    header, tensors = _read(reference)
    norms = _norms(reference, tensors)
    warnings = []
    for quant in quants:
        other, others = _read(quant)
        _same_metadata(header, other, quant)
        _same_tensors(tensors, others, quant)
        _same_weights(tensors, others, quant)
        if norms != _norms(quant, others):
            warnings.append(
                f"{quant.label}: its norm weights are not the reference's, so it is not"
                " a quantization of this reference alone (another fine-tune?)"
            )
    return warnings


def is_recurrent(model: Model) -> bool:
    """Return whether a model keeps a state besides attention's, so that windows go one by one."""
    keys = read_header(model.path).metadata
    return any(".ssm." in key or ".wkv." in key or "shortconv" in key for key in keys)


def _read(model: Model) -> tuple[GgufHeader, dict[str, tuple[Any, TensorInfo]]]:
    headers = [read_header(path) for path in model.shards]
    return headers[0], {t.name: (h.path, t) for h in headers for t in h.tensors}


def _same_metadata(reference: GgufHeader, quant: GgufHeader, model: Model) -> None:
    arch = reference.text("general.architecture")
    shared = reference.metadata.keys() & quant.metadata.keys()
    hyperparameters = sorted(key for key in shared if key.startswith(f"{arch}."))
    for key in ("general.architecture", *_VOCABULARY, *hyperparameters):
        ours, theirs = _value(reference, key), _value(quant, key)
        if ours != theirs:
            sizes = "" if isinstance(ours, bytes) else f" ({theirs!r}, in the reference {ours!r})"
            raise BadModel(
                f"{model.label} is not a quant of the reference: {key} differs{sizes}",
                where=model.path,
                fix=_FIX,
            )


def _value(header: GgufHeader, key: str) -> Any:
    """Return a value; of a long array the sha256 of its bytes."""
    found = header.metadata.get(key)
    if not isinstance(found, ArraySummary):
        return found
    start, end = found.span
    with header.path.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(end - start)).digest()


def _same_tensors(
    reference: dict[str, tuple[Any, TensorInfo]],
    quant: dict[str, tuple[Any, TensorInfo]],
    model: Model,
) -> None:
    for name in sorted(reference.keys() | quant.keys()):
        shapes = [t[name][1].shape if name in t else None for t in (quant, reference)]
        if shapes[0] != shapes[1]:
            words = [str(list(s)) if s else "missing" for s in shapes]
            raise BadModel(
                f"{model.label} is not a quant of the reference: tensor {name} is {words[0]},"
                f" in the reference {words[1]}",
                where=model.path,
                fix=_FIX,
            )


def _same_weights(
    reference: dict[str, tuple[Any, TensorInfo]],
    quant: dict[str, tuple[Any, TensorInfo]],
    model: Model,
) -> None:
    """Raise if some rows of a matrix have nothing to do with the reference's."""
    matrices = [
        n for n in sorted(reference) if n.startswith("blk.") and _is_matrix(reference[n][1])
    ]
    if not matrices:
        return
    name, rows = matrices[0], []
    for path, tensor in (reference[name], quant[name]):
        try:
            kind = gguf.GGMLQuantizationType[tensor.type_name]
            n_rows = tensor.n_elements // tensor.shape[0]
            size_bytes = tensor.size_bytes // n_rows * min(_ROWS, n_rows)
            with path.open("rb") as file:
                file.seek(tensor.offset)
                raw = np.frombuffer(file.read(size_bytes), np.uint8)
            rows.append(gguf.dequantize(raw.reshape(min(_ROWS, n_rows), -1), kind).ravel())
        except (KeyError, NotImplementedError):  # a type that gguf-py cannot read
            return
    a, b = (r.astype(np.float64) for r in rows)
    scale = float(np.sqrt((a @ a) * (b @ b)))
    if scale > 0 and a @ b < _LEAST_COSINE * scale:
        raise BadModel(
            f"{model.label} is not a quant of the reference: {name} is another matrix",
            where=model.path,
            fix=_FIX,
        )


def _is_matrix(tensor: TensorInfo) -> bool:
    return tensor.name.endswith(".weight") and len([n for n in tensor.shape if n > 1]) == 2


def _norms(model: Model, tensors: dict[str, tuple[Any, TensorInfo]]) -> dict[str, bytes]:
    """Return the bytes of the F32 normalization weights."""
    found = {}
    for name, (path, tensor) in tensors.items():
        if name.endswith(_NORM) and tensor.type_name == "F32":
            with path.open("rb") as file:
                file.seek(tensor.offset)
                found[name] = file.read(tensor.size_bytes)
    return found
