"""The tensors that a model's quantizer looks up in an importance matrix."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.imatrix.format import Entry, layer_and_role
from imatrix_lab.models.gguf import TensorInfo, read_header
from imatrix_lab.models.resolve import quantizable
from imatrix_lab.types import Model

_NOT_MULTIPLIED = re.compile(r"attn_kv_b\.|compressor_ape|conv1d")
_BITS_BUT_SIGN = {"F32": ("<u4", 0x7FFFFFFF), "F16": ("<u2", 0x7FFF), "BF16": ("<u2", 0x7FFF)}
_SLAB_BYTES = 16 << 20


@dataclass(frozen=True)
class ModelTensors:
    """A model's matrices, each with its file, and which of them a complete imatrix has."""

    expected: frozenset[str]
    tensors: Mapping[str, tuple[Path, TensorInfo]]
    model_sha256: str = ""

    def shape(self, name: str) -> tuple[int, int]:
        """Return a tensor's number of matrices and of columns."""
        shape = self.tensors[name][1].shape
        return (shape[2] if len(shape) > 2 else 1), shape[0]

    def fits(self, name: str, entry: Entry) -> bool:
        """Return whether llama-quantize accepts an entry for a tensor: by its number of values."""
        matrices, columns = self.shape(name)
        return entry.sums.size == matrices * columns and entry.counts.size in (1, matrices)

    def with_weights(self, name: str, columns: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Return which of some (matrices, columns) have a nonzero weight; None if quantized."""
        path, info = self.tensors[name]
        if info.type_name not in _BITS_BUT_SIGN:
            return None
        dtype, mask = _BITS_BUT_SIGN[info.type_name]
        n_matrices, n_columns = self.shape(name)
        weights = np.memmap(path, dtype, "r", info.offset, (n_matrices, info.shape[1], n_columns))
        nonzero = np.zeros_like(columns)
        slab = max(1, _SLAB_BYTES // (n_columns * weights.itemsize))
        for i in np.flatnonzero(columns.any(axis=1)):
            left = np.flatnonzero(columns[i])
            for first in range(0, info.shape[1], slab):
                hit = (weights[i, first : first + slab, left] & mask).any(axis=1)
                nonzero[i, left[hit]] = True
                left = left[~hit]
        return nonzero


def of(model: Model) -> ModelTensors:
    """Return the tensors of a model, from its files' headers."""
    headers = [read_header(path) for path in model.shards]
    arch = model.facts.architecture
    tensors = {t.name: (h.path, t) for h in headers for t in h.tensors if len(t.shape) > 1}
    n_skipped = headers[0].integer(f"{arch}.nextn_predict_layers")
    n_shared_kv = headers[0].integer(f"{arch}.attention.shared_kv_layers")
    infos = [info for _, info in tensors.values()]
    expected = expected_tensors(infos, model.facts.n_layers, n_skipped, n_shared_kv)
    return ModelTensors(frozenset(expected), tensors, model.sha256)


def expected_tensors(
    tensors: Iterable[TensorInfo], n_layers: int, n_skipped: int = 0, n_shared_kv: int = 0
) -> set[str]:
    """Return the tensors a complete imatrix has: those of the layers that are quantized.

    Token embeddings are looked up, not multiplied; the output matrix is collected on request
    only. The last layers of a model with multi-token prediction are not run (`n_skipped`), the
    last layers of some use the keys and values of earlier ones (`n_shared_kv`), MLA models
    multiply by the split halves of ``attn_kv_b``, and convolutions are not products.
    """
    names = set()
    for tensor in tensors:
        layer, _ = layer_and_role(tensor.name)
        if layer is None or not quantizable(tensor) or _NOT_MULTIPLIED.search(tensor.name):
            continue
        shares = layer >= n_layers - n_shared_kv and re.search(r"attn_[kv]\.weight", tensor.name)
        if layer < n_layers - n_skipped and not shares:
            names.add(tensor.name)
    return names
