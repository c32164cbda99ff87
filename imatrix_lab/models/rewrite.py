"""A model written anew: some tensors with other values, all else as it was.

The metadata is copied byte for byte, without what says that a model was in several files. The
layout is llama.cpp's ``docs/gguf.md``, version 3.
"""

import bisect
import itertools
import operator
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imatrix_lab.core.progress import Progress
from imatrix_lab.llamacpp import ggml
from imatrix_lab.models import weights
from imatrix_lab.models.foreign import MAGIC
from imatrix_lab.models.gguf import GgufHeader, read_header
from imatrix_lab.models.weights import FileTensor
from imatrix_lab.types import Model

_PAIRS_AT = 24
_SPLIT = ("split.no", "split.count", "split.tensors.count")
_PIECE = 16 << 20


def write(
    path: Path,
    model: Model,
    types: Mapping[str, str],
    values: Callable[[FileTensor], Iterable[bytes]],
    progress: Progress,
    what: str,
) -> None:
    """Write a model to one file, the tensors in `types` in those types and with new values.

    `values` yields a tensor's bytes in the order of the file. A file that a killed run left there
    is gone on with, at the tensor that was in work; the order of tensors and their types must be
    the same.
    """
    header, tensors = read_header(model.path), weights.tensors(model)
    alignment = header.integer("general.alignment", 32)
    sizes = [_size_bytes(t, types.get(name)) for name, t in tensors.items()]
    padding = [-size_bytes % alignment for size_bytes in sizes]
    starts = [0, *itertools.accumulate(map(operator.add, sizes, padding))]
    head = _head(header, tensors, types, starts)
    head += bytes(-len(head) % alignment)
    path.touch()
    with progress.task(what, starts[-1], "B") as task, path.open("r+b") as file:
        n_done = bisect.bisect_right(starts, file.seek(0, 2) - len(head)) - 1
        file.truncate(len(head) + starts[n_done] if n_done > 0 else 0)
        file.seek(0, 2)
        if n_done <= 0:
            file.write(head)
        task.update(starts[max(0, n_done)], "continuing an earlier run" if n_done > 0 else "")
        for i, (name, tensor) in enumerate(tensors.items()):
            if i < n_done:
                continue
            for piece in values(tensor) if name in types else _pieces(tensor):
                file.write(piece)
            file.write(bytes(padding[i]))
            task.update(starts[i + 1])


def _size_bytes(tensor: FileTensor, type_name: str | None) -> int:
    info = tensor.info
    if type_name is None:
        return info.size_bytes
    return weights.n_rows(info) * ggml.row_bytes(type_name, info.shape[0])


def _head(
    header: GgufHeader,
    tensors: Mapping[str, FileTensor],
    types: Mapping[str, str],
    starts: Sequence[int],
) -> bytes:
    """Return what comes before the tensors' values, but for the padding."""
    pairs = list[bytes]()
    with header.path.open("rb") as file:
        file.seek(_PAIRS_AT)
        for key, size_bytes in header.pair_bytes.items():
            pair = file.read(size_bytes)
            pairs += [] if key in _SPLIT else [pair]
    head = MAGIC + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs)
    for (name, (_, info)), start in zip(tensors.items(), starts, strict=False):
        raw, shape = name.encode(), info.shape
        code = ggml.TYPES[types.get(name, info.type_name)].code
        head += struct.pack("<Q", len(raw)) + raw
        head += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, code, start)
    return head


def _pieces(tensor: FileTensor) -> Iterator[Any]:
    path, info = tensor
    with path.open("rb") as file:
        file.seek(info.offset)
        for at in range(0, info.size_bytes, _PIECE):
            yield file.read(min(_PIECE, info.size_bytes - at))
