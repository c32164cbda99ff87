"""Second moments of what matrices read: E[x] and blocks of E[x xᵀ], in a GGUF beside E[x²].

A moments file is an importance matrix (`format`) with two more tensors for each distinct input,
under the name of the matrix that reads it first:

    NAME.in_sum     float32 (matrices, columns)                     sum of x over the tokens
    NAME.in_block   float32 (matrices x blocks, block, block)       sum of x xᵀ, diagonal blocks

`matrices` is the number of experts, or 1. Blocks are symmetric, of 256 columns (the last one is
filled up with zeros), or one of all columns where they were asked for whole. Which other matrices
read the same input is in the metadata, under `KEY`. All of it adds over texts and files.
llama-quantize ignores what it does not know, so that such a file is an imatrix for it too.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.files import from_json
from imatrix_lab.errors import BadImatrix
from imatrix_lab.imatrix import format
from imatrix_lab.imatrix.collector import BLOCK, Collector, Input
from imatrix_lab.imatrix.findings import ERROR, Finding
from imatrix_lab.imatrix.format import Tensor
from imatrix_lab.models.foreign import MAGIC
from imatrix_lab.models.gguf import GgufHeader

KEY = format.OURS + "moments"
SUMS, BLOCKS = ".in_sum", ".in_block"
_DIAGONAL_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Moments:
    """A moments file, read tensor by tensor.

    `first` maps each matrix to the one under whose name its input's moments are.
    """

    header: GgufHeader
    first: Mapping[str, str]
    _shapes: Mapping[str, tuple[int, ...]]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names under which moments lie: one for each distinct input."""
        return tuple(sorted(set(self.first.values())))

    def sums(self, matrix: str) -> NDArray[np.float32]:
        """Return the sums of x, float32 (matrices, columns)."""
        return self._values(self.first[matrix] + SUMS)

    def shape(self, matrix: str) -> tuple[int, int, int]:
        """Return (matrices, blocks, columns of a block)."""
        name = self.first[matrix]
        n, block, _ = self._shapes[name + BLOCKS]
        n_matrices = self._shapes[name + SUMS][0]
        return n_matrices, n // n_matrices, block

    def blocks(self, matrix: str, which: int = 0) -> NDArray[np.float32]:
        """Return the sums of x xᵀ of one matrix (expert), float32 (blocks, block, block)."""
        n_blocks = self.shape(matrix)[1]
        return self._values(self.first[matrix] + BLOCKS, (which * n_blocks, n_blocks))

    def _values(self, name: str, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        shape = self._shapes[name]
        first, n = rows or (0, shape[0])
        (info,) = (t for t in self.header.tensors if t.name == name)
        row = int(np.prod(shape[1:]))
        offset = info.offset + 4 * first * row
        values = np.fromfile(self.header.path, np.float32, n * row, offset=offset)
        if values.size != n * row:
            raise BadImatrix(f"{name} is cut off", where=self.header.path)
        return values.reshape(n, *shape[1:])


def read(path: Path) -> Moments | None:
    """Return the moments in an importance matrix, or None if it has none.

    Raises BadImatrix for a file that is damaged.
    """
    if path.suffix == ".dat" or not _is_gguf(path):
        return None
    header = format.checked_header(path)
    if not (text := header.text(KEY)):
        return None
    try:
        first = {str(name): str(other) for name, other in from_json(text).items()}
        infos = {t.name: t for t in header.tensors}
        shapes = dict[str, tuple[int, ...]]()
        for name in set(first.values()):
            if first.get(name) != name:
                raise ValueError(f"{name} has moments, and is said to have another's")
            n_matrices = infos[name + format.COUNTS].n_elements
            n_columns = infos[name + SUMS].n_elements // n_matrices
            block = infos[name + BLOCKS].shape[0]
            n_blocks = -(-n_columns // block)
            shapes[name + SUMS] = (n_matrices, n_columns)
            shapes[name + BLOCKS] = (n_matrices * n_blocks, block, block)
            if infos[name + format.SQUARES].n_elements != n_matrices * n_columns:
                raise ValueError(f"{name} has sums of other columns than squares")
            for tensor in (name + SUMS, name + BLOCKS):
                if infos[tensor].n_elements != np.prod(shapes[tensor]):
                    raise ValueError(f"{tensor} has {infos[tensor].n_elements} values")
                if infos[tensor].type_name != "F32":
                    raise ValueError(f"{tensor} is not float32")
    except (ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise BadImatrix(f"its moments cannot be read: {error}", where=path) from error
    return Moments(header, first, shapes)


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def of(collector: Collector) -> tuple[dict[str, str], list[Tensor]]:
    """Return the metadata and tensors of all moments; each is made when it is written."""
    inputs = [i for i in collector.inputs() if i.block and (i.experts or i.n_matrices == 1)]
    names = {i.index: i.first for i in inputs}
    first = {n: names[i] for n, i in collector.matrices().items() if i in names}
    tensors = []
    for source in inputs:
        n_blocks = -(-source.n_columns // source.block)
        shape = (source.n_matrices, source.n_columns)
        tensors.append(Tensor(source.first + SUMS, shape, _sums(collector, source)))
        blocks = (source.n_matrices * n_blocks, source.block, source.block)
        tensors.append(Tensor(source.first + BLOCKS, blocks, _blocks(collector, source)))
    return {KEY: json.dumps(first, sort_keys=True)}, tensors


def _sums(collector: Collector, source: Input) -> Callable[[], Iterator[NDArray[Any]]]:
    def values() -> Iterator[NDArray[Any]]:
        for matrix in range(source.n_matrices):
            total = collector.sums(source, matrix).total
            yield np.zeros(source.n_columns) if total is None else total

    return values


def _blocks(collector: Collector, source: Input) -> Callable[[], Iterator[NDArray[Any]]]:
    return lambda: (collector.blocks(source, matrix) for matrix in range(source.n_matrices))


def facts(path: Path) -> dict[str, Any]:
    """Return how many inputs a file has moments of, how wide its blocks are, and their bytes."""
    moments = read(path)
    if moments is None:
        return {}
    shapes = [moments.shape(name) for name in moments.inputs]
    n_whole = sum(block > BLOCK for _, _, block in shapes)
    size_bytes = sum(4 * matrices * blocks * block**2 for matrices, blocks, block in shapes)
    sizes = {"block": BLOCK, "n_whole": n_whole, "size_bytes": size_bytes}
    return {"n_inputs": len(shapes), **sizes}


def check(path: Path) -> list[Finding]:
    """Return what is wrong with a file's moments: they must agree with its squares."""
    moments = read(path)
    if moments is None:
        return []
    entries, wrong = format.read(path).entries, []
    for name in moments.inputs:
        n_matrices, _, block = moments.shape(name)
        sums, squares = moments.sums(name), entries[name].sums
        counts = entries[name].counts
        for matrix in range(n_matrices):
            blocks = moments.blocks(name, matrix)
            diagonal = blocks[:, range(block), range(block)].reshape(-1)[: squares.shape[1]]
            close = np.allclose(diagonal, squares[matrix], rtol=_DIAGONAL_TOLERANCE, atol=1e-30)
            # Cauchy and Schwarz
            bound = np.sqrt(squares[matrix].astype(np.float64) * counts[matrix]) * 1.001 + 1e-30
            within = bool((np.abs(sums[matrix]) <= bound).all())
            if not (np.isfinite(blocks).all() and close and within):
                wrong.append(name)
                break
    if not wrong:
        return []
    what = f"{len(wrong)} of {len(moments.inputs)} inputs have moments that contradict the squares"
    effect = "rounding that uses them goes wrong"
    return [Finding(ERROR, "moments", what, effect, "collect it again", tuple(wrong), False)]
