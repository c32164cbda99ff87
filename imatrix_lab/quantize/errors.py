"""What every tensor of a model would lose at every type, without making a file.

Rows of each tensor go through ggml's own search with the importance matrix that the file will be
quantized with. For a language with mean squared activations s[c] at input column c,

    error = sum_rc s[c] (w - q)²[r, c] / sum_rc s[c] w²[r, c]

is the share of the tensor's squared output that is lost, as in `imatrix.predict`; experts count as
often as the language's tokens reach them. Kept in the store are sums over rows, one number for each
column, for each type: any language's error is arithmetic. About `ROWS` rows of a tensor are
quantized, drawn by size (`rows`); that misses the error of all rows by 1 to 2 %, and nearly alike
for all types. The denominator is exact: weights are read once for it, in strips.

Embeddings and heads have a row for each token, and most imatrices have no importance for them:

- their rows count as often as a language's tokens: by the counts in its calibration text, of which
  the tokens seen once tell how much of other text is tokens not seen at all (Good 1953);
- as an embedding, columns count equally: a row is what the model reads. As a head, columns count by
  the activations after the final norm where the language's imatrix has them (``--process-output``),
  else equally. A tensor that is both has the mean of both errors.
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
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.errors import BadModel, UsageError
from imatrix_lab.imatrix import format, quant_error
from imatrix_lab.imatrix.format import Imatrix, rounded
from imatrix_lab.llamacpp import ggml, native
from imatrix_lab.llamacpp.ggml import Ggml
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import weights
from imatrix_lab.models.gguf import TensorInfo
from imatrix_lab.models.weights import FileTensor
from imatrix_lab.quantize import rows
from imatrix_lab.quantize.rows import Sample
from imatrix_lab.types import ImatrixFacts, Model

Result = TypeVar("Result")

VERSION = 1
"""Raise it when the same model and imatrix give other errors."""
ROWS, TOKEN_ROWS, MATRIX_ROWS = 512, 2048, 16
"""Rows that are quantized: of a tensor, of one with a row for each token, and for each expert."""
EVEN = 0.25
"""Share of the probability of a row that does not depend on the imatrix, so that the errors of
languages far from it are estimated well too."""
STRIP_WEIGHTS = 1 << 20
"""Weights in a strip: 4 MiB as numbers. Fixed, so that sums do not depend on the threads."""

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
HEAD = "output.weight"
NEED_IMPORTANCE = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"))
"""Not offered for tensors without importance: llama-quantize refuses them, or they are poor."""
PUBLISHED = frozenset(("MXFP4", "NVFP4"))
"""Types that models are published in: such tensors stay as they are."""
LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""Also offered where rows are not whole blocks of 256."""
_FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), "IQ4_NL"),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    **{"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"},
}


@dataclass(frozen=True)
class Option:
    """A tensor at a type: its bytes, and by language the share of its squared output lost."""

    size_bytes: int
    errors: Mapping[str, float]


Options = Mapping[str, Mapping[str, Option]]
"""By tensor, then by type; the tensor's own type, at which nothing is lost, comes first."""


@dataclass(frozen=True)
class Language:
    """What a language asks of a model: its importance matrix, and how often its tokens occur.

    `token_counts` (ids,) are those of its calibration text; None: all tokens count the same.
    """

    imatrix: Imatrix
    token_counts: NDArray[np.int64] | None = None


def importance_of(
    imatrix: Imatrix | None, name: str, info: TensorInfo
) -> NDArray[np.float32] | None:
    """Return the importance llama-quantize takes for a tensor, shape (matrices, columns).

    Mean squares; 1 for an expert without tokens (``load_imatrix`` in quantize.cpp). None: it has
    none for the tensor.
    """
    entry = imatrix.entries.get(name) if imatrix else None
    shape = (math.prod(info.shape[2:]), info.shape[0])
    if entry is None or entry.sums.size != math.prod(shape):
        return None
    counts = rounded(entry.counts).astype(np.float32)[:, None]
    sums = entry.sums.astype(np.float32)
    means = np.ones_like(sums)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means.reshape(shape)


def fallback(type_name: str, n_columns: int) -> str:
    """Return the type that llama-quantize takes for rows of so many weights.

    The type itself where rows are whole blocks of it (``tensor_type_fallback`` in llama-quant.cpp).
    """
    for taken in (type_name, _FALLBACKS.get(type_name, type_name)):
        if n_columns % ggml.TYPES[taken].block == 0:
            return taken
    return "F16"


def candidates(info: TensorInfo, types: Sequence[str], important: bool) -> tuple[str, ...]:
    """Return the types that are offered for a tensor, its own first."""
    if info.type_name in PUBLISHED:
        return (info.type_name,)
    taken = [fallback(t, info.shape[0]) for t in types]
    if taken != list(types):
        taken += [fallback(t, info.shape[0]) for t in LEGACY]
    offered = [t for t in taken if important or t not in NEED_IMPORTANCE]
    return tuple(dict.fromkeys((info.type_name, *offered)))


def size_bytes(info: TensorInfo, type_name: str) -> int:
    """Return the bytes of a tensor at a type."""
    return weights.n_rows(info) * ggml.row_bytes(type_name, info.shape[0])


def frequencies(token_counts: NDArray[np.int64] | None, n_rows: int) -> NDArray[np.float64]:
    """Return how often each token is expected in other text than the one counted; the sum is 1.

    Tokens seen once are as frequent as all tokens not seen, together (I. J. Good, The population
    frequencies of species, Biometrika 40, 1953); each of those counts the same.
    """
    counts = np.zeros(n_rows)
    if token_counts is not None:
        counts[: len(token_counts)] = token_counts[:n_rows]
    n_tokens, unseen = counts.sum(), counts == 0
    if not n_tokens or not unseen.any():
        return np.asarray((counts + (n_tokens == 0)) / (n_tokens or n_rows))
    missing = np.count_nonzero(counts == 1) / n_tokens
    return np.asarray(counts * (1 - missing) / n_tokens + unseen * (missing / unseen.sum()))


def options(
    tools: Toolchain,
    model: Model,
    imatrix: ImatrixFacts | None,
    types: Sequence[str],
    languages: Mapping[str, Language],
    session: Session,
    threads: int,
) -> Options:
    """Return every quantizable tensor at every type that it can take.

    What is computed is kept in the store, for each (model, imatrix, type): a run that was stopped
    goes on at the type it was at.

    Parameters
    ----------
    imatrix : what the file will be quantized with, or None.
    types : names of ggml's types (``Q4_K``); where rows are not whole blocks of one, the type that
        llama-quantize would fall back to is offered.
    languages : whose errors are wanted, by name.

    Raises UsageError for an unknown type; BadModel for weights that are no numbers.
    """
    for type_name in types:
        if type_name not in ggml.TYPES:
            fix = "one of: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0, IQ4_XS"
            raise UsageError(f"{type_name} is not a type of tensors", fix=fix)
    search = _Search(ggml.load(tools), model, imatrix, tools.signature(), session, threads)
    offered = {
        name: candidates(tensor.info, types, search.importance[name] is not None)
        for name, tensor in search.tensors.items()
    }
    errors = {label: search.errors(known, offered) for label, known in languages.items()}
    return {
        name: {
            t: Option(
                size_bytes(search.tensors[name].info, t),
                {label: by_tensor.get((name, t), 0.0) for label, by_tensor in errors.items()},
            )
            for t in offered[name]
        }
        for name in offered
    }


# -- computing


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


@dataclass(frozen=True)
class _Search:
    """A model and the imatrix that it is quantized with."""

    ggml: Ggml
    model: Model
    imatrix: ImatrixFacts | None
    toolchain: Mapping[str, str]
    session: Session
    threads: int

    @cached_property
    def tensors(self) -> dict[str, FileTensor]:
        """The tensors that llama-quantize quantizes."""
        return quant_error.tensors(self.model)

    @cached_property
    def known(self) -> Imatrix | None:
        """The imatrix, read."""
        return format.read(self.imatrix.path) if self.imatrix else None

    @cached_property
    def importance(self) -> dict[str, NDArray[np.float32] | None]:
        """What each tensor is quantized with."""
        return {n: importance_of(self.known, n, t.info) for n, t in self.tensors.items()}

    def shape(self, name: str) -> tuple[int, int]:
        """Return a tensor's numbers of matrices and columns."""
        shape = self.tensors[name].info.shape
        return math.prod(shape[2:]), shape[0]

    @cached_property
    def layers(self) -> "_Part":
        """The tensors whose rows all count the same."""
        names = [n for n in self.tensors if n not in (*EMBEDDINGS, HEAD)]
        return _Part(self, "layers", names, None)

    def tokens(self, language: Language) -> "_Part":
        """Return the tensors with a row for each token."""
        names = [n for n in self.tensors if n in (*EMBEDDINGS, HEAD)]
        n_rows = max((self.tensors[n].info.shape[1] for n in names), default=1)
        return _Part(self, "tokens", names, frequencies(language.token_counts, n_rows))

    def errors(
        self, language: Language, offered: Mapping[str, Sequence[str]]
    ) -> dict[tuple[str, str], float]:
        """Return a language's error by tensor and type, but for the tensors' own types."""
        errors = {}
        for part in (self.layers, self.tokens(language)):
            for type_name in dict.fromkeys(t for n in part.names for t in offered[n][1:]):
                names = [n for n in part.names if type_name in offered[n][1:]]
                for name, lost in part.lost(type_name, names).items():
                    share = self.share(language, name, lost, part.sampled.power[name])
                    errors[name, type_name] = share
        return errors

    def share(
        self, language: Language, name: str, lost: NDArray[Any], power: NDArray[Any]
    ) -> float:
        """Return the share of a tensor's squared output that is lost; 0 where there is none."""
        even, squares = np.ones(lost.shape), _squares(language.imatrix, name, lost.shape)
        roles = [even if squares is None else squares]
        if name in EMBEDDINGS:
            is_head = name == EMBEDDINGS[0] and HEAD not in self.tensors
            roles = [even, *roles] if is_head else [even]
        sums = [(float((s * lost).sum()), float((s * power).sum())) for s in roles]
        return sum(lost / power if power else 0.0 for lost, power in sums) / len(sums)


class _Part:
    """Tensors of a model, and how often each of their rows counts (None: all the same)."""

    def __init__(
        self, search: _Search, label: str, names: Sequence[str], expected: NDArray[Any] | None
    ):
        self.search, self.label, self.names, self.frequencies = search, label, names, expected

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
        known = self.search.known
        squares = _squares(known, strip.name, self.search.shape(strip.name)) if known else None
        even = np.einsum("rc,rc->r", values, values)
        columns = _column_sums(values, strip.weights)
        if squares is None:
            return np.stack([even, even]) * strip.weights, columns
        values *= values
        sizes = np.einsum("rc,c->r", values, squares[strip.matrix].astype(np.float32))
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
        with self.search.session.progress.task(name, sum(sizes), "weights") as task:
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


def _squares(imatrix: Imatrix, name: str, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Return a language's sums of squared activations for a tensor, if it has them."""
    entry = imatrix.entries.get(name)
    if entry is None or entry.sums.size != math.prod(shape):
        return None
    return np.asarray(entry.split(shape[0]).sums.reshape(shape), np.float64)
