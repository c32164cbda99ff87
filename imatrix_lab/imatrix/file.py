"""llama.cpp's GGUF importance matrix: ``<tensor>.in_sum2`` and ``<tensor>.counts``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imatrix_lab.errors import BadImatrix, BadModel
from imatrix_lab.gguf_file import TensorInfo, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Entry:
    """Statistics of one tensor's input.

    Attributes
    ----------
    sums : sum of squared activations, float32, shape (matrices, columns).
    counts : tokens summed, float32, shape (matrices,): one, or one an expert.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix in memory: tensor name -> `Entry`, and the file's metadata.

    ``language`` is what this project wrote into it, or empty.
    """

    entries: dict[str, Entry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    language: str = ""


def read(path: Path) -> Imatrix:
    """Read a GGUF imatrix.

    Raises
    ------
    BadImatrix : not an imatrix, damaged, or sums and counts that do not belong together.
    """
    try:
        header = read_header(path)
    except BadModel as error:
        raise BadImatrix(error.what, where=path, fix=error.fix) from error
    if header.text("general.type") != "imatrix":
        raise BadImatrix("this GGUF file is not an importance matrix", where=path)
    tensors = {t.name: t for t in header.tensors}
    entries = {}
    for name, info in tensors.items():
        if not name.endswith(_SUMS):
            continue
        base = name.removesuffix(_SUMS)
        counts = tensors.get(base + _COUNTS)
        if counts is None:
            raise BadImatrix(f"{base} has sums but no counts", where=path)
        if info.type_name != "F32" or counts.type_name != "F32":
            raise BadImatrix(f"{base} is not float32", where=path)
        n_matrices = counts.n_elements
        if info.n_elements % n_matrices:
            raise BadImatrix(f"{base}: {info.n_elements} sums for {n_matrices} counts", where=path)
        entries[base] = Entry(
            _floats(path, info).reshape(n_matrices, -1), _floats(path, counts).reshape(-1)
        )
    datasets = header.metadata.get("imatrix.datasets", [])
    return Imatrix(
        entries,
        tuple(str(d) for d in datasets) if isinstance(datasets, list) else (),
        header.integer("imatrix.chunk_count"),
        header.integer("imatrix.chunk_size"),
        header.text("imatrix_lab.language"),
    )


def _floats(path: Path, info: TensorInfo) -> NDArray[Any]:
    import numpy as np

    return np.fromfile(path, np.float32, count=info.n_elements, offset=info.offset)


def write(path: Path, imatrix: Imatrix, metadata: Mapping[str, str]) -> None:
    """Write a GGUF imatrix as llama-imatrix does, with more metadata."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "")  # an imatrix has no architecture
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", list(imatrix.datasets))
    writer.add_uint32("imatrix.chunk_count", imatrix.chunk_count)
    writer.add_uint32("imatrix.chunk_size", imatrix.chunk_size)
    for key, value in metadata.items():
        writer.add_string(key, value)
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        writer.add_tensor(name + _SUMS, entry.sums)
        writer.add_tensor(name + _COUNTS, entry.counts.reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
