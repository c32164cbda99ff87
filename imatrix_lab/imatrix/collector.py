"""The compiled sums of a running model: opened, read, saved and restored.

`collect.cpp` is called back by llama.cpp for each node of its graph; a numpy callback with second
moments spent 29 % of the time (124 instead of 375 tokens/s on the demo model).
"""

import ctypes
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.files import replacing
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadImatrix, MissingTool
from imatrix_lab.imatrix.format import Entry
from imatrix_lab.llamacpp import native
from imatrix_lab.llamacpp.toolchain import Toolchain

SOURCE = Path(__file__).with_name("collect.cpp")
BLOCK = 256
"""Columns of a diagonal block of products: those of a k-quant's super-block."""
STRIP = 32
"""Rows of products that lie together, as in `collect.cpp`."""
SHARD = 64
"""Windows whose squares are summed from zero, before that is added to those of the windows before.

Another number gives other last bits."""
_N_OPERATIONS = 256


@dataclass(frozen=True)
class Settings:
    """What is summed, and how.

    block : columns of a diagonal block of products; 0: neither products nor sums.
    full : matrices whose products are kept whole.
    head : collect for the output matrix too, which is computed for that.
    """

    threads: int
    block: int = 0
    full: tuple[str, ...] = ()
    head: bool = False


@dataclass(frozen=True)
class Sums:
    """Sums over the rows of one input; views of the collector's memory.

    n : tokens.
    squares, shard : float64 (columns,), of x² in the shards that have ended and in the present one.
    total : float64 (columns,), of x; None without moments.
    products : float64, the packed upper triangles of the diagonal blocks of x xᵀ, or None.
    """

    n: int
    squares: NDArray[np.float64] | None
    shard: NDArray[np.float64] | None
    total: NDArray[np.float64] | None
    products: NDArray[np.float64] | None


@dataclass(frozen=True)
class Input:
    """One distinct input of a model's matrices; `matrices`: experts, or heads that differ.

    `first` is the matrix that reads it first; `block` the columns of a block of products.
    """

    index: int
    first: str
    n_columns: int
    n_matrices: int
    experts: bool
    block: int
    n_products: int


class _Functions(ctypes.Structure):
    _fields_ = [
        ("is_host", ctypes.c_void_p),
        ("get", ctypes.c_void_p),
        ("n_bytes", ctypes.c_void_p),
        ("mul_mat", ctypes.c_int32),
        ("mul_mat_id", ctypes.c_int32),
    ]


class Collector(AbstractContextManager["Collector"]):
    """Sums that grow while a context with its callbacks decodes."""

    def __init__(
        self, tools: Toolchain, settings: Settings, flag: ctypes.c_int32, session: Session
    ):
        self._library = library = native.compiled(SOURCE, "collect", tools, session)
        for name in ("collector_new", "collector_sums"):
            getattr(library, name).restype = ctypes.c_void_p
        for name in ("collector_fault", "collector_matrix", "collector_input"):
            getattr(library, name).restype = ctypes.c_char_p
        for name in ("n_matrices", "n_inputs", "n_multiplied"):
            getattr(library, f"collector_{name}").restype = ctypes.c_int64
        library.collector_ended.restype = ctypes.c_bool
        self._flag, self._functions = flag, _functions(tools)
        self._self = ctypes.c_void_p(
            library.collector_new(
                ctypes.byref(self._functions),
                ctypes.c_int(settings.threads),
                ctypes.c_int64(settings.block),
                ctypes.c_bool(settings.head),
                ctypes.byref(flag),
            )
        )
        for name in settings.full:
            library.collector_full(self._self, name.encode())

    def __exit__(self, *exc: object) -> None:
        self._library.collector_free(self._self)

    def attach(self, params: Any) -> None:
        """Let a context that is made with these parameters call back."""
        params.cb_eval = ctypes.cast(self._library.collect, type(params.cb_eval))
        params.cb_eval_user_data = self._self
        stop = self._library.should_stop
        params.abort_callback = ctypes.cast(stop, type(params.abort_callback))
        params.abort_callback_data = self._self

    def begin(self, lengths: Sequence[int], window: int, may_end: bool) -> None:
        """Prepare for a decode of windows of `window` tokens, padded beyond their `lengths`.

        `may_end`: nothing needs its tokens' memory afterwards.
        """
        n = len(lengths)
        self._library.collector_begin(
            self._self,
            ctypes.c_bool(may_end),
            ctypes.c_int64(window),
            ctypes.c_int64(n),
            (ctypes.c_int64 * n)(*lengths),
        )

    def abort(self) -> None:
        """Let the decode that was begun only allocate what it needs."""
        self._library.collector_abort(self._self)

    @property
    def n_multiplied(self) -> int:
        """How many matrices this decode has multiplied."""
        return int(self._library.collector_n_multiplied(self._self))

    def release(self, address: Any, size_bytes: int) -> None:
        """Give the memory of a buffer of zeros back to the system; its addresses stay valid."""
        self._library.release(address, ctypes.c_size_t(size_bytes))

    @property
    def ended(self) -> bool:
        """Whether the decode was ended before the output head, on purpose."""
        return bool(self._library.collector_ended(self._self))

    @property
    def fault(self) -> str:
        """Why the sums cannot be used, or ""."""
        return str(self._library.collector_fault(self._self).decode())

    def matrices(self) -> dict[str, int]:
        """Return the index of each matrix's input."""
        index, matrices = ctypes.c_int64(), {}
        for i in range(self._library.collector_n_matrices(self._self)):
            at = ctypes.c_int64(i)
            name = self._library.collector_matrix(self._self, at, ctypes.byref(index))
            matrices[name.decode()] = index.value
        return matrices

    def inputs(self) -> list[Input]:
        """Return the distinct inputs so far."""
        inputs, facts = [], (ctypes.c_int64 * 5)()
        for i in range(self._library.collector_n_inputs(self._self)):
            first = self._library.collector_input(self._self, ctypes.c_int64(i), facts)
            columns, matrices, experts, block, products = facts
            inputs.append(
                Input(i, first.decode(), columns, matrices, bool(experts), block, products)
            )
        return inputs

    def sums(self, source: Input, matrix: int, make: bool = False) -> Sums:
        """Return the sums of one matrix's rows; without tokens they are None unless made."""
        return self._sums(source, matrix, make)[1]

    def _sums(self, source: Input, matrix: int, make: bool) -> tuple[Any, Sums]:
        pointers = [ctypes.POINTER(ctypes.c_double)() for _ in range(4)]
        address = self._library.collector_sums(
            self._self,
            ctypes.c_int64(source.index),
            ctypes.c_int64(matrix),
            ctypes.c_bool(make),
            *(ctypes.byref(p) for p in pointers),
        )
        count = ctypes.c_int64.from_address(address)
        lengths = (*3 * (source.n_columns,), source.n_products)
        arrays = [
            np.ctypeslib.as_array(pointer, (n,)) if pointer else None
            for pointer, n in zip(pointers, lengths, strict=True)
        ]
        return count, Sums(count.value, *arrays)

    def entries(self) -> dict[str, Entry]:
        """Return E[x²]'s sums and counts as llama-imatrix stores them, by matrix; float32."""
        inputs = {i.index: self._entry(i) for i in self.inputs()}
        return {name: inputs[index] for name, index in self.matrices().items()}

    def _entry(self, source: Input) -> Entry:
        squares = np.zeros((source.n_matrices, source.n_columns), np.float32)
        counts = np.zeros(source.n_matrices, np.float32)
        for matrix in range(source.n_matrices):
            sums = self.sums(source, matrix)
            counts[matrix] = sums.n
            if sums.squares is not None and sums.shard is not None:
                squares[matrix] = sums.squares + sums.shard
        if source.experts:
            return Entry(squares, counts)
        return Entry(squares.reshape(1, -1), counts.sum(keepdims=True) / source.n_matrices)

    def blocks(self, source: Input, matrix: int) -> NDArray[np.float64]:
        """Return the sums of x xᵀ, float64 (blocks, block, block), symmetric."""
        products = self.sums(source, matrix).products
        if products is None:
            products = np.zeros(source.n_products)
        return unpacked(products, source.n_columns, source.block)

    def end_shard(self) -> None:
        """Let the next window begin a shard."""
        self._library.collector_end_shard(self._self)

    def save(self, path: Path, n_windows: int) -> None:
        """Write all sums, whole or not at all; `n_windows` is what they have seen."""
        inputs, rows, arrays = self.inputs(), [], list[NDArray[np.float64]]()
        for source in inputs:
            for matrix in range(source.n_matrices):
                sums = self.sums(source, matrix)
                if sums.n:
                    rows.append((source.index, matrix, sums.n))
                    parts = (sums.squares, sums.shard, sums.total, sums.products)
                    arrays += [p for p in parts if p is not None]
        shapes = [(i.first, i.n_columns, i.n_matrices, i.experts) for i in inputs]
        size_bytes = sum(a.nbytes for a in arrays)
        head = {"n_windows": n_windows, "inputs": shapes, "matrices": self.matrices()}
        head |= {"sums": rows, "size_bytes": size_bytes, "shard_windows": SHARD}
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(json.dumps(head).encode() + b"\n")
            for array in arrays:
                file.write(array.data)  # numpy's own writing hides that a disk is full

    def add(self, path: Path) -> int:
        """Add saved sums, before a shard begins; return the number of windows they have seen.

        Raises BadImatrix, and changes nothing, for a file that is not whole.
        """
        try:
            with path.open("rb") as file:
                head = json.loads(file.readline())
                if file.tell() + head["size_bytes"] != path.stat().st_size:
                    raise ValueError("it is cut off")
                if head["shard_windows"] != SHARD:
                    raise ValueError("its shards are others")
                self._add(file, head)
        except (OSError, ValueError, KeyError) as error:
            raise BadImatrix(f"saved sums cannot be used: {error}", where=path) from error
        return int(head["n_windows"])

    def _add(self, file: IO[bytes], head: Any) -> None:
        known = self.matrices()
        for name, columns, matrices, experts in head["inputs"]:
            if name not in known:
                self._library.collector_add(
                    self._self,
                    name.encode(),
                    ctypes.c_int64(columns),
                    ctypes.c_int64(matrices),
                    ctypes.c_bool(experts),
                )
        index_of, inputs = self.matrices(), self.inputs()
        sources = [inputs[index_of[name]] for name, *_ in head["inputs"]]
        for name, index in head["matrices"].items():
            at = ctypes.c_int64(sources[index].index)
            self._library.collector_alias(self._self, name.encode(), at)
        for index, matrix, n in head["sums"]:
            count, sums = self._sums(sources[index], matrix, make=True)
            count.value += n
            for array in (sums.squares, sums.shard, sums.total, sums.products):
                if array is not None:
                    array[:] += np.fromfile(file, np.float64, array.size)


def _functions(tools: Toolchain) -> _Functions:
    """Return what the kernel needs of ggml; raises MissingTool if its tensors look otherwise."""
    name = "libggml-base.dylib" if sys.platform == "darwin" else "libggml-base.so"
    try:
        ggml = ctypes.CDLL(str(tools.library_dir / name))
        name_of = ggml.ggml_op_name
        name_of.restype = ctypes.c_char_p
        pointers = [
            ctypes.cast(getattr(ggml, function), ctypes.c_void_p).value
            for function in (
                "ggml_backend_buffer_is_host",
                "ggml_backend_tensor_get",
                "ggml_nbytes",
            )
        ]
    except (OSError, AttributeError) as error:
        what = f"llama.cpp's library cannot be used: {error}"
        raise MissingTool(what, fix="imatrix-lab toolchain build") from error
    numbers = {}
    for i in range(_N_OPERATIONS):
        operation = name_of(i)
        numbers[operation] = i
        if operation == b"MUL_MAT_ID":
            break
    return _Functions(*pointers, numbers[b"MUL_MAT"], numbers[b"MUL_MAT_ID"])


@functools.cache
def sums_bytes(n_columns: int, block: int) -> int:
    """Return the memory of one input's sums; `block` as in `Settings`."""
    if not block:
        return 8 * 2 * n_columns
    widths = (min(block, n_columns - at) for at in range(0, n_columns, block))
    n_products = sum(STRIP * (c.stop - c.start) for width in widths for _, c in strips(width))
    return 8 * (3 * n_columns + int(n_products))


def strips(width: int) -> Iterator[tuple[slice, slice]]:
    """Yield the (rows, columns) of a block's packed strips, in order; a block is padded to 32."""
    padded = -(-width // STRIP) * STRIP
    return ((slice(a, a + STRIP), slice(a, padded)) for a in range(0, padded, STRIP))


def unpacked(products: NDArray[np.float64], n_columns: int, block: int) -> NDArray[np.float64]:
    """Return the symmetric diagonal blocks, (blocks, block, block); zeros beyond the columns."""
    n_blocks, at = -(-n_columns // block), 0
    whole = np.zeros((n_blocks, block, block))
    for b in range(n_blocks):
        width = min(block, n_columns - b * block)
        padded = -(-width // STRIP) * STRIP
        square = np.zeros((padded, padded))
        for rows, columns in strips(width):
            shape = (STRIP, columns.stop - columns.start)
            square[rows, columns] = products[at : at + shape[0] * shape[1]].reshape(shape)
            at += shape[0] * shape[1]
        square = np.triu(square) + np.triu(square, 1).T
        whole[b, :width, :width] = square[:width, :width]
    return whole
