"""Rounding with error feedback (GPTQ) on llama.cpp's own grids, by second moments of the inputs.

llama-quantize rounds each weight by itself. Here a matrix is rounded column by column, and the
error of each column is made good in the columns to come, as far as their inputs go together with
its own: what is minimized is the error of the output, E|(W - Q)x|², for H = E[x xᵀ] of a text.
Scales and minimums of each block stay llama.cpp's, found by its own search, weighted by E[x²], on
what the block's columns are by then. So the bytes of a file change, and neither its types nor its
size. Method: GPTQ (Frantar et al., arXiv 2210.17323), columns in the order of the file.
`feedback.cpp` does the rounding.

The moments of a sample are not those of a language: they are shrunk towards their diagonal, with
which there is no feedback at all (`shrinkage`).
"""

import ctypes
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadImatrix, BadModel, UsageError
from imatrix_lab.imatrix import format, moments
from imatrix_lab.imatrix.format import Entry
from imatrix_lab.imatrix.moments import Moments
from imatrix_lab.llamacpp import ggml, native, programs
from imatrix_lab.llamacpp.ggml import Ggml
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import weights
from imatrix_lab.models.gguf import TensorInfo, read_header
from imatrix_lab.models.weights import FileTensor
from imatrix_lab.types import Model

SOURCE = Path(__file__).with_name("feedback.cpp")
VERSION = 1
"""Raise it when the same moments give other bytes."""
TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Types of tensors that have a grid of even steps in each block. IQ types take groups of values
from a codebook or uneven steps: see docs/feedback.md."""
SHRINKAGE_MIN, SHRINKAGE_TOKENS = 0.05, 1.0
"""See `shrinkage`; measured in docs/feedback.md."""
COLLECT = "imatrix-lab imatrix build --model MODEL --corpus LANGUAGE --moments"
_STRIP_WEIGHTS = 1 << 18
_STRIP_ROWS = 64
"""Rows that the kernel rounds together: strips are multiples of it."""
GROUP = 128
"""Columns that share a grid in `Kernel.on_grid`; below, the kernel's type and block for them."""
_ON_GRID = -1
_GRID_BLOCK = np.dtype([("step", "<f4"), ("offset", "<f4"), ("codes", "u1", GROUP)])


def shrinkage(n_tokens: float, n_columns: int) -> float:
    """Return by how much moments of so many tokens are shrunk, from 0 to 1."""
    return min(1.0, max(SHRINKAGE_MIN, SHRINKAGE_TOKENS * n_columns / n_tokens))


def factor(blocks: NDArray[Any], shrink: float) -> NDArray[np.float32]:
    """Return what of each column's error goes into each column after it.

    blocks : E[x xᵀ] or a multiple of it, (blocks, width, width).
    Returns float32 (blocks, width, width): in row c, what column c takes of the errors of the
    columns before it; 0 elsewhere. Moments that are singular are shrunk more, until they are not.
    """
    columns = np.empty(blocks.shape, np.float32)
    for i, block in enumerate(blocks):
        columns[i] = _factor(block.astype(np.float64), shrink)
    return columns


def _factor(block: NDArray[np.float64], shrink: float) -> NDArray[np.float64]:
    # columns that were never active get a 1 on the diagonal: they take part in nothing
    size = np.sqrt(np.where(block.diagonal() > 0, block.diagonal(), 1))
    correlation = np.clip(block / np.outer(size, size), -1, 1)
    np.fill_diagonal(correlation, 0)
    while True:
        shrunk = (1 - shrink) * correlation
        np.fill_diagonal(shrunk, 1)
        try:
            # C = R Rᵀ with R upper triangular, by reversing the order of columns
            upper = np.linalg.cholesky(shrunk[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            shrink = min(1.0, 2 * shrink + 1e-3)
            continue
        inverse, _ = scipy.linalg.lapack.dtrtri(upper)
        taken = -inverse * np.outer(upper.diagonal() * size, 1 / size)
        return np.asarray(np.triu(taken, 1).T)


class Pair(NamedTuple):
    """A tensor of a model, and what it is in a quant."""

    weights: FileTensor
    quant: FileTensor


@dataclass(frozen=True)
class Strip:
    """Some rows of one matrix; `first` counts over all matrices of the tensor.

    `prepared` is what a `Rounding` made of the moments of their input, `importance` E[x²].
    """

    pair: Pair
    first: int
    n_rows: int
    prepared: NDArray[np.float32]
    importance: NDArray[np.float32]
    is_last: bool


class Rounding(Protocol):
    """A way to round matrices by moments of their inputs."""

    ggml: Ggml
    takes_unseen: bool
    """Whether matrices of experts that no token reached are rounded too."""

    def takes(self, info: TensorInfo) -> bool:
        """Return whether it can round a tensor of a quant."""

    def prepared(
        self, blocks: NDArray[np.float32], n_tokens: float, n_columns: int
    ) -> NDArray[np.float32]:
        """Return what it needs of the moments of one input, (blocks, width, width)."""

    def round(self, rows: NDArray[np.float32], strip: Strip) -> NDArray[np.uint8]:
        """Return rows as bytes in the type that their tensor has in the quant."""


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("n_columns", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("factor", ctypes.c_void_p),
        ("importance", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("quantize", ctypes.c_void_p),
        ("from_half", ctypes.c_void_p),
    )


class Kernel:
    """The compiled rounding, with ggml's functions."""

    takes_unseen = False

    def __init__(self, tools: Toolchain, session: Session):
        self.ggml = ggml.load(tools)
        self._feed_back = native.compiled(SOURCE, "feedback", tools, session).feed_back
        self._feed_back.restype = ctypes.c_bool

    def takes(self, info: TensorInfo) -> bool:
        """Return whether a tensor's type has a grid of even steps."""
        return info.type_name in TYPES

    def prepared(
        self, blocks: NDArray[np.float32], n_tokens: float, n_columns: int
    ) -> NDArray[np.float32]:
        """Return `factor` of moments, shrunk."""
        return factor(blocks, shrinkage(n_tokens, n_columns))

    def round(self, rows: NDArray[np.float32], strip: Strip) -> NDArray[np.uint8]:
        """Return rows in the type of their tensor."""
        type_name = strip.pair.quant.info.type_name
        return self.rounded(rows, type_name, strip.prepared, strip.importance)

    def rounded(
        self,
        rows: NDArray[np.float32],
        type_name: str,
        factor: NDArray[np.float32],
        importance: NDArray[np.float32],
    ) -> NDArray[np.uint8]:
        """Return rows (rows, columns) of a matrix in a type of `TYPES`, shape (rows, bytes).

        `factor` as `factor` returns it, for blocks of 256 columns or one of all; `importance`,
        (columns,), weighs ggml's search. Raises BadModel for weights that are no numbers.
        """
        n_rows, n_columns = rows.shape
        if not np.isfinite(rows).all():
            raise BadModel("weights are NaN or infinite")
        importance = np.ascontiguousarray(importance, np.float32)
        raw = np.empty((n_rows, ggml.row_bytes(type_name, n_columns)), np.uint8)
        search = (importance.ctypes.data, ggml.TYPES[type_name].code)
        functions = map(self.ggml.address, ("ggml_quantize_chunk", "ggml_fp16_to_fp32"))
        self._round_to(raw, rows, factor, *search, *functions)
        return raw

    def on_grid(
        self,
        rows: NDArray[np.float32],
        step: NDArray[np.float32],
        offset: NDArray[np.float32],
        factor: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Return rows (rows, columns) rounded to 16 values in each group of `GROUP` columns.

        Values are offset + step · code; both (rows, groups). `factor` as in `rounded`.
        """
        blocks = np.zeros(step.shape, _GRID_BLOCK)
        blocks["step"], blocks["offset"] = step, offset
        self._round_to(blocks, rows, factor, None, _ON_GRID, None, None)
        values = offset[..., None] + step[..., None] * blocks["codes"]
        return np.asarray(values, np.float32).reshape(rows.shape)

    def _round_to(
        self, out: NDArray[Any], rows: NDArray[Any], factor: NDArray[Any], *how: int | None
    ) -> None:
        rows, factor = (np.ascontiguousarray(a, np.float32) for a in (rows, factor))
        matrix = _Matrix(rows.shape[1], factor.shape[-1], factor.ctypes.data, *how)
        at = [ctypes.c_void_p(a.ctypes.data) for a in (rows, out)]
        if not self._feed_back(ctypes.byref(matrix), at[0], ctypes.c_int64(len(rows)), at[1]):
            raise ValueError(f"no feedback for type {how[1]} in {rows.shape[1]} columns")


@dataclass(frozen=True)
class Source:
    """What a quant was made of: an F16 model, and an imatrix with moments."""

    model: Model
    imatrix: Path


def settings() -> dict[str, Any]:
    """Return what can change the bytes besides model, imatrix and type."""
    return {"version": VERSION, "shrinkage": [SHRINKAGE_MIN, SHRINKAGE_TOKENS]}


def metadata() -> dict[str, str]:
    """Return what goes into a file's metadata, without the project's prefix."""
    words = f"max({SHRINKAGE_MIN}, {SHRINKAGE_TOKENS} columns/tokens)"
    return {"feedback": f"GPTQ, version {VERSION}", "feedback.shrinkage": words}


def check_types(types: Iterable[str]) -> None:
    """Raise UsageError for a type of llama-quantize whose tensors feedback cannot round."""
    for name in types:
        if name in programs.QUANT_TYPES and not name.startswith(TYPES):
            what = f"{name} has no tensors that can be rounded with feedback"
            raise UsageError(
                what, fix=f"choose one of {', '.join(TYPES)} or a mix of them (Q3_K_M)"
            )


def check(imatrix: Path | None, types: Iterable[str]) -> None:
    """Raise UsageError, BadImatrix for types or an imatrix (or none) that feedback cannot use."""
    check_types(types)
    if imatrix is None:
        raise UsageError("feedback needs an imatrix with moments", fix=COLLECT)
    read_moments(imatrix)


def read_moments(imatrix: Path, needing: str = "feedback") -> Moments:
    """Return an imatrix's moments; raises UsageError if it has none, and what is `needing` them."""
    source = moments.read(imatrix)
    if source is None:
        what = f"{needing} needs second moments, which this importance matrix does not have"
        raise UsageError(what, where=imatrix, fix=COLLECT)
    return source


def pairs(
    takes: Callable[[TensorInfo], bool], model: Model, quant: Path, source: Moments
) -> list[Pair]:
    """Return the tensors of a quant that can be rounded by moments, of those that `takes` chooses.

    Those that read one input follow each other, so that its factor is computed once.
    """
    ours, order = weights.tensors(model), dict[str, int]()
    fitting = [
        Pair(ours[t.name], FileTensor(quant, t))
        for t in read_header(quant).tensors
        if takes(t) and t.name in source.first and _fits(t, ours.get(t.name), source)
    ]
    for pair in fitting:
        order.setdefault(source.first[pair.quant.info.name], len(order))
    return sorted(fitting, key=lambda p: order[source.first[p.quant.info.name]])


def _fits(info: TensorInfo, ours: FileTensor | None, source: Moments) -> bool:
    n_matrices, n_blocks, width = source.shape(info.name)
    covered = (n_blocks - 1) * width < info.shape[0] <= n_blocks * width
    same = ours is not None and ours.info.shape == info.shape
    return same and covered and n_matrices == math.prod(info.shape[2:])


def apply(
    rounding: Rounding, source: Source, quant: Path, threads: int, progress: Progress
) -> list[str]:
    """Round a quant's tensors again, in place, and return their names.

    `quant` was made by llama-quantize of the same source. A tensor is as it was, or
    done; what is done is listed beside the file, and a run that was killed goes on from there.
    Matrices of experts that no token reached stay as they are.
    """
    measured = read_moments(source.imatrix)
    todo, entries = (
        pairs(rounding.takes, source.model, quant, measured),
        format.read(source.imatrix).entries,
    )
    if not todo:
        types = ", ".join(sorted({t.type_name for t in read_header(quant).tensors}))
        what = f"no tensor of this quant can be rounded by these moments (its types: {types})"
        fix = f"choose a type such as {TYPES[1]}_M; give moments of this model"
        raise BadModel(what, where=quant, fix=fix)
    journal = quant.with_suffix(".rounded")
    done = set(journal.read_text().splitlines()) if journal.exists() else set[str]()
    n_weights = sum(p.quant.info.n_elements for p in todo)
    n_done = sum(p.quant.info.n_elements for p in todo if p.quant.info.name in done)
    left = [p for p in todo if p.quant.info.name not in done]
    with (
        progress.task("rounding by moments", n_weights, "weights") as task,
        quant.open("r+b") as file,
        journal.open("a") as finished,
    ):
        task.update(n_done, "continuing an earlier run" if n_done else "")

        def rounded(strip: Strip) -> NDArray[np.uint8]:
            rows = weights.read_rows(rounding.ggml, strip.pair.weights, strip.first, strip.n_rows)
            return rounding.round(rows, strip)

        strips = _strips(rounding, left, measured, entries)
        for strip, raw in native.in_order(rounded, strips, threads):
            info = strip.pair.quant.info
            file.seek(info.offset + strip.first * raw.shape[1])
            file.write(raw.tobytes())
            n_done += strip.n_rows * info.shape[0]
            task.update(n_done)
            if strip.is_last:
                file.flush()
                os.fsync(file.fileno())
                finished.write(f"{info.name}\n")
                finished.flush()
    return [p.quant.info.name for p in todo]


def _strips(
    rounding: Rounding, todo: Sequence[Pair], source: Moments, entries: Mapping[str, Entry]
) -> Iterator[Strip]:
    """Yield the rows to round, in order; none spans two matrices."""
    latest, prepared = ("", 0), np.empty(0, np.float32)
    for pair in todo:
        info = pair.quant.info
        n_columns, n_rows = info.shape[:2]
        entry, step = entries[info.name], max(1, _STRIP_WEIGHTS // (n_columns * _STRIP_ROWS))
        matrices = range(math.prod(info.shape[2:]))
        chosen = [m for m in matrices if entry.counts[m] > 0 or rounding.takes_unseen]
        for matrix in chosen:
            key = (source.first[info.name], matrix)
            if key != latest:
                blocks = source.blocks(info.name, matrix)
                if not np.isfinite(blocks).all():
                    what = f"the moments of {key[0]} are NaN or infinite"
                    raise BadImatrix(what, where=source.header.path, fix="compute it again")
                prepared = rounding.prepared(blocks, entry.counts[matrix], n_columns)
                latest = key
            importance = entry.means()[matrix].astype(np.float32)
            for start in range(0, n_rows, step * _STRIP_ROWS):
                n = min(step * _STRIP_ROWS, n_rows - start)
                is_last = matrix == chosen[-1] and start + n == n_rows
                first = matrix * n_rows + start
                yield Strip(pair, first, n, prepared, importance, is_last)
