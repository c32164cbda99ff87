"""The expected squared error of a quant's outputs, from a language's moments (`moments`).

For a matrix W that became W', with e the rows of W - W' and M = E[x xᵀ] over a language's tokens,
the expected squared error of W'x is sum_e eᵀ M e, exactly. A moments file has M's diagonal blocks
M_b and E[x], so that with C_b = M_b - E[x_b] E[x_b]ᵀ, the covariance within a block,

    lost = sum_e ( sum_b e_bᵀ C_b e_b + (E[x]·e)² )

That is exact where one block holds all columns (`Basis.exact`). Elsewhere only the covariance of
columns in different blocks is missing: taken as zero, which is not to say that E[x_i x_j] is. From
the squares alone every product of two columns would be: sum_c E[x²]_c e_c², wrong by all of
(E[x]·e)² where a column has a mean. Tensors without moments (some heads of MLA) use the squares.
"""

import ctypes
import functools
import json
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.files import from_json, write_whole
from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import BadImatrix, BadModel
from imatrix_lab.imatrix import quant_error
from imatrix_lab.imatrix.format import Imatrix
from imatrix_lab.imatrix.moments import Moments
from imatrix_lab.imatrix.quant_error import Kernel, RowBlock
from imatrix_lab.llamacpp import native
from imatrix_lab.models.gguf import TensorInfo
from imatrix_lab.types import Model

FILE = "output-error.json"
VERSION = 1
"""Increase it when the same files give other sums."""

_PADDING = 32  # LANES of the kernel


@dataclass(frozen=True)
class Language:
    """A language's importance matrix and its moments."""

    imatrix: Imatrix
    moments: Moments

    def knows(self, tensor: str) -> bool:
        """Return whether there are moments of what a tensor reads."""
        return tensor in self.moments.first

    def check(self, tensors: Iterable[TensorInfo]) -> None:
        """Raise BadImatrix for moments of other shapes than tensors of a model."""
        for info in tensors:
            if not self.knows(info.name):
                continue
            ours = self.moments.sums(info.name).shape
            if ours != (math.prod(info.shape[2:]), info.shape[0]):
                what = f"{info.name} has moments of {list(ours)} matrices and columns"
                what = f"{what}; the model has {[math.prod(info.shape[2:]), info.shape[0]]}"
                raise BadImatrix(what, where=self.moments.header.path)


class Expected(NamedTuple):
    """Sums over the tokens of a language's text: the squared output lost, and all of it."""

    lost: float
    energy: float


@dataclass(frozen=True)
class Basis:
    """How many tensors are predicted from what: the whole of E[x xᵀ], its blocks, or E[x²]."""

    exact: int = 0
    blocks: int = 0
    squares: int = 0


def basis(languages: Sequence[Language], shapes: Mapping[str, int]) -> Basis:
    """Return from what tensors are predicted, by name and columns; the least of all languages."""
    counts = [0, 0, 0]
    for name, n_columns in shapes.items():
        known = all(language.knows(name) for language in languages)
        widths = [language.moments.shape(name)[2] for language in languages] if known else [0]
        counts[0 if min(widths) >= n_columns else 1 if known else 2] += 1
    return Basis(*counts)


def write(
    outs: Sequence[tuple[Path, Language]],
    kernel: Kernel,
    model: Model,
    quant: Model,
    threads: int,
    progress: Progress,
) -> None:
    """Write the expected errors of a quant for languages to their folders, in one pass.

    They cover the tensors that a language's imatrix has.
    """
    languages = [language for _, language in outs]
    names = set[str]().union(*(language.imatrix.entries for language in languages))
    pairs = [p for p in quant_error.paired(kernel, model, quant) if p[0].info.name in names]
    for language in languages:
        language.check(w.info for w, _ in pairs)
    expected: list[dict[str, Expected]] = [{} for _ in languages]
    sums_of = _Pass(kernel, languages).sums
    n_weights, done = sum(w.info.n_elements for w, _ in pairs), 0
    with progress.task(f"output errors of {quant.label}", n_weights, "weights") as task:
        todo, sums = quant_error.blocks(pairs), np.zeros((2, len(languages)))
        for block, more in native.in_order(sums_of, todo, threads):
            sums, info = sums + more, block.w.info
            task.update(done := done + block.n_rows * info.shape[0])
            if not block.is_last:
                continue
            if not np.isfinite(sums).all():
                raise BadModel(f"{info.name} has NaN or infinite weights", where=quant.path)
            for language, by_tensor, pair in zip(languages, expected, sums.T, strict=True):
                if info.name in language.imatrix.entries:
                    by_tensor[info.name] = Expected(*pair.tolist())
            sums = np.zeros_like(sums)
    for (out, _), by_tensor in zip(outs, expected, strict=True):
        write_whole(out / FILE, json.dumps(by_tensor))


def read(path: Path) -> dict[str, Expected]:
    """Return a language's expected errors by tensor, as `write` wrote them."""
    return {name: Expected(*pair) for name, pair in from_json(path.read_text("utf-8")).items()}


class _Products(NamedTuple):
    """Of one language and matrix, in sums over tokens: what the kernel multiplies.

    upper : float32 (blocks, width, width), covariances, doubled above the diagonal, zero below.
    mean : float64 (columns,), E[x] times the root of the number of tokens.
    """

    block: int
    upper: NDArray[np.float32]
    mean: NDArray[np.float64]


class _Pass:
    """The sums of blocks of rows for some languages, called by several threads."""

    def __init__(self, kernel: Kernel, languages: Sequence[Language]):
        self.kernel, self.languages = kernel, languages
        # q, k and v read one input, and a large matrix has many blocks of rows
        self._cached = functools.lru_cache(2 * len(languages))(self._read)
        self._lock = threading.Lock()

    def sums(self, block: RowBlock) -> NDArray[np.float64]:
        """Return what is lost of a block's squared output, and all of it: (2, languages)."""
        name, shape = block.w.info.name, block.w.info.shape
        sums, by_width = np.zeros((2, len(self.languages))), dict[int, dict[int, _Products]]()
        for i, language in enumerate(self.languages):
            if language.knows(name):
                products = self._products(i, block)
                by_width.setdefault(products.block, {})[i] = products
            elif entry := language.imatrix.entries.get(name):
                matrices = (math.prod(shape[2:]), shape[0])
                squares = quant_error.activations(entry, matrices, name)[block.matrix]
                sums[:, i] = self.kernel.sums(block) @ squares
        for group in by_width.values():
            sums[:, list(group)] = self._expected(block, list(group.values()))
        return sums

    def _products(self, language: int, block: RowBlock) -> _Products:
        first = self.languages[language].moments.first[block.w.info.name]
        with self._lock:
            return self._cached(language, first, block.matrix)

    def _read(self, language: int, first: str, matrix: int) -> _Products:
        moments = self.languages[language].moments
        n_tokens = float(self.languages[language].imatrix.entries[first].counts[matrix])
        blocks, total = moments.blocks(first, matrix), moments.sums(first)[matrix]
        n_blocks, block, _ = blocks.shape
        mean = total.astype(np.float64) / math.sqrt(n_tokens if n_tokens > 0 else math.inf)
        means = np.zeros(n_blocks * block)
        means[: mean.size] = mean
        width = -(-block // _PADDING) * _PADDING
        upper = np.zeros((n_blocks, width, width), np.float32)
        for out, products, m in zip(upper, blocks, means.reshape(n_blocks, block), strict=True):
            covariance = products - np.outer(m, m)
            out[:block, :block] = np.triu(covariance) + np.triu(covariance, 1)
        return _Products(block, upper, mean)

    def _expected(self, block: RowBlock, products: Sequence[_Products]) -> NDArray[np.float64]:
        sums = np.empty((2, len(products)))
        sizes = (products[0].block, products[0].upper.shape[1], len(products))
        pointers = ctypes.c_void_p * len(products)
        self.kernel.call(
            "expected_sums",
            block,
            *(ctypes.c_int64(n) for n in sizes),
            ctypes.cast(pointers(*(p.upper.ctypes.data for p in products)), ctypes.c_void_p),
            ctypes.cast(pointers(*(p.mean.ctypes.data for p in products)), ctypes.c_void_p),
            *(ctypes.c_void_p(s.ctypes.data) for s in sums),
        )
        return sums
