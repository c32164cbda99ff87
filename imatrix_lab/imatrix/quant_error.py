"""The squared error of quantizing, by column of each matrix of a model.

For a matrix W and what it became, W', with r over rows (outputs) and c over columns (inputs):

    error[c] = sum_r (W - W')²[r, c]        power[c] = sum_r W²[r, c]

With E[x²] alone `predict` needs nothing else, so one pass over the weights serves every language
and mixture. What moments of the inputs add is in `output_error`.
Both sides go through ggml's own ``to_float`` in blocks of rows, 15 times as fast as gguf-py.
"""

import ctypes
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.progress import Progress, Task
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadImatrix, BadModel
from imatrix_lab.imatrix.format import Entry
from imatrix_lab.llamacpp import ggml, native
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import scaling, weights
from imatrix_lab.models.gguf import read_header
from imatrix_lab.models.resolve import quantizable
from imatrix_lab.models.weights import FileTensor
from imatrix_lab.types import Model

SOURCE = Path(__file__).with_name("quant_error.cpp")
FILE = "columns.npz"
BLOCK_WEIGHTS = 1 << 22
"""Weights in a block: 8 MiB of F16. Fixed, so that sums do not depend on the threads."""

LOSS_VERSION = 1
"""Increase it when the same files give other sums. 1: all tensors that llama-quantize quantizes."""

_ERROR, _POWER = ".error", ".power"


@dataclass(frozen=True)
class Columns:
    """Sums over the rows of one tensor; float64, shape (matrices, columns)."""

    error: NDArray[np.float64]
    power: NDArray[np.float64]


@dataclass(frozen=True)
class RowBlock:
    """Some rows of a matrix and of its quantized self; ``first`` counts over all matrices."""

    w: FileTensor
    q: FileTensor
    matrix: int
    first: int
    n_rows: int
    is_last: bool


class Kernel:
    """The compiled sums, with ggml's conversions by type name."""

    def __init__(self, library: ctypes.CDLL, conversions: Mapping[str, int | None]):
        self.library, self.conversions = library, dict(conversions)

    def sums(self, block: RowBlock) -> NDArray[np.float64]:
        """Return error and power over the rows of a block, shape (2, columns)."""
        sums = np.empty((2, block.w.info.shape[0]))
        self.call("column_sums", block, *(ctypes.c_void_p(s.ctypes.data) for s in sums))
        return sums

    def call(self, function: str, block: RowBlock, *rest: ctypes.c_void_p | ctypes.c_int64) -> None:
        """Call a function of the library with both sides of a block, read from the files."""
        rows, arguments = [], list[ctypes.c_void_p | ctypes.c_int64]()
        for tensor in (block.w, block.q):
            raw = weights.read_raw(tensor, block.first, block.n_rows)
            rows.append(raw)  # kept until the call is over
            to_float = self.conversions[tensor.info.type_name]
            arguments += [ctypes.c_void_p(raw.ctypes.data), ctypes.c_void_p(to_float)]
            arguments.append(ctypes.c_int64(raw.shape[1]))
        arguments += [ctypes.c_int64(block.n_rows), ctypes.c_int64(block.w.info.shape[0])]
        getattr(self.library, function)(*arguments, *rest)


def kernel(tools: Toolchain, session: Session) -> Kernel:
    """Return the kernel, compiled (seconds) unless it is in the store."""
    conversions = ggml.load(tools).conversions
    return Kernel(native.compiled(SOURCE, "loss", tools, session), conversions)


def tensors(model: Model) -> dict[str, FileTensor]:
    """Return the tensors of a model that llama-quantize quantizes."""
    return {n: t for n, t in weights.tensors(model).items() if quantizable(t.info)}


def write(
    out: Path, kernel: Kernel, model: Model, quant: Model, threads: int, progress: Progress
) -> None:
    """Write the column sums of every quantizable tensor of a model against a quant of it."""
    pairs = paired(kernel, model, quant)
    n_weights = sum(w.info.n_elements for w, _ in pairs)
    with (
        zipfile.ZipFile(out / FILE, "w") as archive,
        progress.task(f"errors of {quant.label}", n_weights, "weights") as task,
    ):
        for name, sums in _columns(kernel, pairs, threads, task):
            if not np.isfinite(sums).all():
                raise BadModel(f"{name} has NaN or infinite weights", where=quant.path)
            for suffix, values in zip((_ERROR, _POWER), sums, strict=True):
                # with a fixed time, so that the same sums give the same bytes
                with archive.open(zipfile.ZipInfo(f"{name}{suffix}.npy"), "w") as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)


def read(path: Path) -> Mapping[str, Callable[[], Columns]]:
    """Return a function for each tensor that reads its sums; nothing is read yet."""
    archive = np.load(path, allow_pickle=False)

    def columns(name: str) -> Columns:
        return Columns(archive[name + _ERROR], archive[name + _POWER])

    names = [f.removesuffix(_ERROR) for f in archive.files if f.endswith(_ERROR)]
    return {name: partial(columns, name) for name in names}


def activations(entry: Entry, shape: tuple[int, ...], name: str) -> NDArray[np.float64]:
    """Return sums of squares in a tensor's shape (matrices, columns); raises BadImatrix."""
    if entry.sums.size != math.prod(shape) or entry.sums.shape[1] % shape[1]:
        ours = list(entry.sums.shape)
        raise BadImatrix(f"{name} is for {ours} matrices and columns; the model has {list(shape)}")
    return entry.split(shape[0]).sums.reshape(shape).astype(np.float64)


def paired(kernel: Kernel, model: Model, quant: Model) -> list[tuple[FileTensor, FileTensor]]:
    """Return each quantizable tensor with the quant's; raises BadModel if one does not fit."""
    if scaling.is_scaled(read_header(quant.path)):
        what = f"the channels of {quant.label} were scaled (AWQ): its weights are not the model's"
        raise BadModel(what, where=quant.path, fix="give a quant without AWQ, or score it")
    ours, theirs = tensors(model), tensors(quant)
    for name, tensor in ours.items():
        other = theirs.get(name)
        if other is None or other.info.shape != tensor.info.shape:
            problem = f"has the shape {list(other.info.shape)}" if other else "is missing"
            what = f"{name} {problem}, not {list(tensor.info.shape)}"
            what = f"{quant.label} is not a quant of this model: {what}"
            fix = "give a quant of this model: --quant NAME=FILE"
            raise BadModel(what, where=quant.path, fix=fix)
        for t in (tensor, other):
            if t.info.type_name not in kernel.conversions:
                raise BadModel(f"{name} is {t.info.type_name}: not weights", where=t.path)
    return [(tensor, theirs[name]) for name, tensor in ours.items()]


def _columns(
    kernel: Kernel, pairs: Sequence[tuple[FileTensor, FileTensor]], threads: int, task: Task
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield every tensor's error and power, shape (2, matrices, columns), in order."""
    done, sums = 0, np.empty(0)
    for block, block_sums in native.in_order(kernel.sums, blocks(pairs), threads):
        info = block.w.info
        if not sums.size:
            sums = np.zeros((2, math.prod(info.shape[2:]), info.shape[0]))
        sums[:, block.matrix] += block_sums
        done += block.n_rows * info.shape[0]
        task.update(done)
        if block.is_last:
            yield info.name, sums
            sums = np.empty(0)


def blocks(pairs: Sequence[tuple[FileTensor, FileTensor]]) -> Iterator[RowBlock]:
    """Yield pairs of tensors in blocks of rows, in order; none spans two matrices."""
    for w, q in pairs:
        n_columns, n_rows = w.info.shape[:2]
        n_matrices, step = math.prod(w.info.shape[2:]), max(1, BLOCK_WEIGHTS // n_columns)
        for matrix in range(n_matrices):
            for start in range(0, n_rows, step):
                size = min(step, n_rows - start)
                is_last = matrix == n_matrices - 1 and start + size == n_rows
                yield RowBlock(w, q, matrix, matrix * n_rows + start, size, is_last)
