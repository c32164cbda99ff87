"""Sums over the rows of tensors of what quantizing loses, by column, kept in the store.

Rows go through ggml's own search with the importance matrix that the file will be quantized with.
About `ROWS` rows of a tensor are quantized, drawn by size (`rows`); what is lost of all rows is
missed by 1 to 2 %, and nearly alike for all types. For the sizes, and for what there is to lose,
all weights are read once, in strips.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.names import slug
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.errors import BadModel
from imatrix_lab.llamacpp import native
from imatrix_lab.llamacpp.ggml import Ggml
from imatrix_lab.models import weights
from imatrix_lab.models.weights import FileTensor
from imatrix_lab.quantize import rows
from imatrix_lab.quantize.rows import Sample
from imatrix_lab.types import ImatrixFacts, Model

VERSION = 1
"""Raise it when the same model and imatrix give other sums."""
ROWS, TOKEN_ROWS, MATRIX_ROWS = 512, 2048, 16
"""Rows that are quantized: of a tensor, of one with a row for each token, and for each expert."""
EVEN = 0.25
"""Share of the probability of a row that does not depend on the imatrix, so that the errors of
languages far from it are estimated well too."""
STRIP_WEIGHTS = 1 << 20
"""Weights in a strip: 4 MiB as numbers. Fixed, so that sums do not depend on the threads."""
SHOWN_WEIGHTS = 10_000_000  # a second or two

Result = TypeVar("Result")


@dataclass(frozen=True)
class Search:
    """A model, and what it is quantized with.

    By tensor: `importance` float32 (matrices, columns), or None; `squares`, the same with experts
    weighed by their tokens, by which rows are drawn.
    """

    ggml: Ggml
    model: Model
    imatrix: ImatrixFacts | None
    tensors: Mapping[str, FileTensor]
    importance: Mapping[str, NDArray[np.float32] | None]
    squares: Mapping[str, NDArray[np.float32] | None]
    toolchain: Mapping[str, str]
    session: Session
    threads: int

    def shape(self, name: str) -> tuple[int, int]:
        """Return a tensor's numbers of matrices and columns."""
        shape = self.tensors[name].info.shape
        return math.prod(shape[2:]), shape[0]


class _Strip(NamedTuple):
    """Rows of one matrix of a tensor, numbered over all its matrices, and what they count."""

    name: str
    matrix: int
    rows: NDArray[np.int64]
    weights: NDArray[np.float64]


class _Sampled(NamedTuple):
    """By tensor: its sample of rows, and the sums of its squared weights (matrices, columns)."""

    rows: Mapping[str, Sample]
    power: Mapping[str, NDArray[np.float32]]


class Part:
    """Tensors of a model, and how often each of their rows counts (None: all the same)."""

    def __init__(
        self, search: Search, label: str, names: Sequence[str], by_row: NDArray[Any] | None
    ):
        self.search, self.label, self.names, self.frequencies = search, label, names, by_row

    def inputs(self) -> dict[str, Any]:
        """Return what determines the rows that are drawn."""
        imatrix, by_row = self.search.imatrix, self.frequencies
        return {
            "version": VERSION,
            "model_sha256": self.search.model.sha256,
            "imatrix_sha256": imatrix.sha256 if imatrix else None,
            "tensors": self.label,
            "frequencies": hashlib.sha256(by_row.data).hexdigest() if by_row is not None else None,
            "sampling": [ROWS, TOKEN_ROWS, MATRIX_ROWS, EVEN, STRIP_WEIGHTS],
            "toolchain": dict(self.search.toolchain),
        }

    @cached_property
    def sampled(self) -> _Sampled:
        """The rows that are drawn, and sums over all rows, from the store or computed."""
        path = self._get("error-rows", "rows", self.inputs(), self._write_sampled).path
        numbers, counts, n = (np.load(path / f"{f}.npy") for f in ("rows", "weights", "n"))
        cuts = np.cumsum(n)[:-1]
        by_name = zip(self.names, np.split(numbers, cuts), np.split(counts, cuts), strict=True)
        samples = {name: Sample(own, weights) for name, own, weights in by_name}
        return _Sampled(samples, self._read_columns(path, self.names))

    def lost(self, type_name: str, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the sums over rows of squared errors at a type, shape (matrices, columns)."""
        names_sha256 = hashlib.sha256("\n".join(names).encode()).hexdigest()
        inputs = {**self.inputs(), "type": type_name, "names_sha256": names_sha256}

        def write(out: Path) -> None:
            sums = {name: np.zeros(self.search.shape(name)) for name in names}
            strips = [strip for name in names for strip in self._drawn(name)]
            step = partial(self._lost, type_name)
            for strip, columns in self._each(f"errors at {type_name}", step, strips):
                if not np.isfinite(columns).all():
                    where = self.search.tensors[strip.name].path
                    raise BadModel(f"{strip.name} overflows at {type_name}", where=where)
                sums[strip.name][strip.matrix] += columns
            _write_columns(out, sums)

        return self._read_columns(self._get("error", type_name, inputs, write).path, names)

    def _lost(self, type_name: str, strip: _Strip) -> NDArray[np.float32]:
        search, tensor = self.search, self.search.tensors[strip.name]
        importance = search.importance[strip.name]
        by_column = None if importance is None else importance[strip.matrix]
        values = weights.read_some(search.ggml, tensor, strip.rows)
        raw = search.ggml.quantize(values, type_name, by_column)
        return _column_sums(values - search.ggml.dequantize(raw, type_name), strip.weights)

    def _write_sampled(self, out: Path) -> None:
        tensors = self.search.tensors
        sums = {name: np.zeros(self.search.shape(name)) for name in self.names}
        sizes = {name: np.empty((2, weights.n_rows(tensors[name].info))) for name in self.names}
        strips = [strip for name in self.names for strip in self._all(name)]
        for strip, (by_row, columns) in self._each("sizes of rows", self._sizes, strips):
            if not np.isfinite(columns).all():
                where = tensors[strip.name].path
                raise BadModel(f"{strip.name} has NaN or infinite weights", where=where)
            sizes[strip.name][:, strip.rows] = by_row
            sums[strip.name][strip.matrix] += columns
        samples = [self._draw(name, sizes[name]) for name in self.names]
        np.save(out / "n.npy", [len(sample.rows) for sample in samples])
        np.save(out / "rows.npy", _joined([sample.rows for sample in samples]))
        np.save(out / "weights.npy", _joined([sample.weights for sample in samples]))
        _write_columns(out, sums)

    def _sizes(self, strip: _Strip) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return the sizes of rows, as the imatrix has it and evenly, and their column sums."""
        tensor, first = self.search.tensors[strip.name], int(strip.rows[0])
        values = weights.read_rows(self.search.ggml, tensor, first, len(strip.rows))
        squares = self.search.squares[strip.name]
        even = np.einsum("rc,rc->r", values, values)
        columns = _column_sums(values, strip.weights)
        sizes = even
        if squares is not None:
            sizes = np.einsum("rc,c->r", np.square(values), squares[strip.matrix])
        return np.stack([sizes, even]) * strip.weights, columns

    def _draw(self, name: str, sizes: NDArray[np.float64]) -> Sample:
        totals = sizes.sum(axis=1, keepdims=True)
        shares = np.divide(sizes, totals, out=np.zeros_like(sizes), where=totals > 0)
        n = max(ROWS, MATRIX_ROWS * self.search.shape(name)[0])
        mixed = (1 - EVEN) * shares[0] + EVEN * shares[1]
        return rows.draw(mixed, TOKEN_ROWS if self.frequencies is not None else n)

    def _all(self, name: str) -> Iterator[_Strip]:
        n = weights.n_rows(self.search.tensors[name].info)
        counts = np.ones(n) if self.frequencies is None else self.frequencies[:n]
        return self._strips(name, np.arange(n), counts)

    def _drawn(self, name: str) -> Iterator[_Strip]:
        sample = self.sampled.rows[name]
        counts = sample.weights
        if self.frequencies is not None:
            counts = counts * self.frequencies[sample.rows]
        return self._strips(name, sample.rows, counts)

    def _strips(
        self, name: str, numbers: NDArray[np.int64], counts: NDArray[np.float64]
    ) -> Iterator[_Strip]:
        """Yield rows in strips, none of which spans two matrices."""
        n_columns, n_rows = self.search.tensors[name].info.shape[:2]
        step = max(1, STRIP_WEIGHTS // n_columns)
        matrices = np.arange(self.search.shape(name)[0] + 1)
        cuts = np.searchsorted(numbers, matrices * n_rows)
        for matrix, (start, end) in enumerate(itertools.pairwise(cuts)):
            for first in range(start, end, step):
                at = slice(first, min(first + step, end))
                yield _Strip(name, matrix, numbers[at], counts[at])

    def _each(
        self, what: str, step: Callable[[_Strip], Result], strips: Sequence[_Strip]
    ) -> Iterator[tuple[_Strip, Result]]:
        """Yield each strip with what a step makes of it, and show how far it is."""
        sizes = [len(strip.rows) * self.search.shape(strip.name)[1] for strip in strips]
        name, n_done = f"{what} ({self.label} of {self.search.model.label})", 0
        results = native.in_order(step, strips, self.search.threads)
        long = sum(sizes) >= SHOWN_WEIGHTS
        progress = self.search.session.progress if long else Silent()
        with progress.task(name, sum(sizes), "weights") as task:
            for size, pair in zip(sizes, results, strict=True):
                n_done += size
                task.update(n_done)
                yield pair

    def _get(
        self, kind: str, label: str, inputs: Mapping[str, Any], write: Callable[[Path], None]
    ) -> Artifact:
        def build(out: Path, scratch: Path) -> Mapping[str, Any]:
            write(out)
            return {}

        search = self.search
        used = slug(search.imatrix.language) if search.imatrix else "none"
        label = f"{search.model.label}-{used}-{self.label}-{label}"
        return search.session.store.get(kind, label, inputs, build, search.session.progress)

    def _read_columns(self, path: Path, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        columns = np.load(path / "columns.npy", mmap_mode="r")
        shapes = [self.search.shape(name) for name in names]
        parts = np.split(columns, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        by_name = zip(names, parts, shapes, strict=True)
        return {name: part.reshape(shape) for name, part, shape in by_name}


def _write_columns(out: Path, sums: Mapping[str, NDArray[np.float64]]) -> None:
    """Write the columns of tensors, one tensor after the other."""
    np.save(out / "columns.npy", _joined([s.astype(np.float32).reshape(-1) for s in sums.values()]))


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0)


def _column_sums(values: NDArray[np.float32], counts: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the sums of squares by column, each row counted so often."""
    squares = np.square(values)
    return np.asarray(np.einsum("r,rc->c", counts.astype(np.float32), squares))
