"""A model's weights as numbers, some rows of a tensor at a time."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.errors import BadModel
from imatrix_lab.llamacpp.ggml import Ggml
from imatrix_lab.models.gguf import TensorInfo, read_header
from imatrix_lab.types import Model


class FileTensor(NamedTuple):
    """A tensor in a file."""

    path: Path
    info: TensorInfo


def tensors(model: Model) -> dict[str, FileTensor]:
    """Return all tensors of a model by name, from its files' headers, in their order."""
    in_files = ((path, t) for path in model.shards for t in read_header(path).tensors)
    return {t.name: FileTensor(path, t) for path, t in in_files}


def n_rows(info: TensorInfo) -> int:
    """Return the number of rows of a tensor, over all its matrices."""
    return info.n_elements // info.shape[0]


def read_raw(tensor: FileTensor, first: int, n: int) -> NDArray[np.uint8]:
    """Return rows as they are in the file, shape (n, bytes); rows count over all matrices."""
    path, info = tensor
    row_bytes = info.size_bytes // n_rows(info)
    raw = np.fromfile(path, np.uint8, n * row_bytes, offset=info.offset + first * row_bytes)
    if raw.size != n * row_bytes:
        raise BadModel(f"{info.name} is cut off", where=path)
    return raw.reshape(n, row_bytes)


def read_some(ggml: Ggml, tensor: FileTensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return certain rows as numbers, shape (rows, columns); they count over all matrices."""
    path, info = tensor
    raw = np.empty((len(rows), info.size_bytes // n_rows(info)), np.uint8)
    with path.open("rb") as file:
        for target, row in zip(raw, rows.tolist(), strict=True):
            file.seek(info.offset + row * raw.shape[1])
            if file.readinto(target.data) != len(target):
                raise BadModel(f"{info.name} is cut off", where=path)
    return ggml.dequantize(raw, info.type_name)


def read_rows(ggml: Ggml, tensor: FileTensor, first: int, n: int) -> NDArray[np.float32]:
    """Return rows as numbers, shape (n, columns); rows count over all matrices."""
    return ggml.dequantize(read_raw(tensor, first, n), tensor.info.type_name)
