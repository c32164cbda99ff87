"""Channels scaled before rounding (AWQ), so that those that matter lose less.

A matrix that reads an input with a few large channels is rounded better where their columns are
larger: each channel is scaled by its root mean square to some power, and what makes the channel is
divided by it (`scaling`). The model computes what it did, and rounding loses less of it. The power
is searched for each pair of tensors on a grid; what counts is the share of the readers' output that
is lost after rounding to the type that each will get, in expectation by a language's moments, else
by its mean squares. Method: AWQ (Lin et al., arXiv 2306.00978, 3.2; ``auto_scale.py`` of llm-awq),
with E[x²] in the place of E|x|, and a share of the output in the place of the output of a layer.
About `ROWS` rows of a matrix are rounded, drawn by what they weigh in its output (`rows`).

`choose` finds the scales, for any rounding; `scaled` makes model and imatrix of them.
"""

import dataclasses
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import BadImatrix, BadModel, UsageError
from imatrix_lab.imatrix import format, moments
from imatrix_lab.imatrix.format import Entry, Imatrix, Tensor
from imatrix_lab.imatrix.moments import Moments
from imatrix_lab.llamacpp import native
from imatrix_lab.llamacpp.ggml import Ggml
from imatrix_lab.models import resolve, rewrite, scaling, weights
from imatrix_lab.models.scaling import Factors, Pair, Places
from imatrix_lab.models.weights import FileTensor
from imatrix_lab.quantize import feedback, rows
from imatrix_lab.types import Model

VERSION = 1
"""Raise it when the same moments give other bytes."""
EXPONENTS = tuple(i / 20 for i in range(20))
ROWS, MATRIX_ROWS = 128, 32
"""Rows that are rounded: of a matrix, and at least for each expert."""
SCALE_MAX = 64.0
"""Scales are at most this, and at least its inverse: F16 holds weights that are scaled."""
_SCALED_TYPES = {"F32": "F32", "F16": "F16", "BF16": "F16"}
WITHOUT = "leave --awq (AWQ=1) out"
_STRIP_WEIGHTS = 1 << 20

Rounding = Callable[[str, int, NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
"""(name, matrix, rows with scaled columns, scales of columns) -> these rows, rounded."""


def settings() -> dict[str, Any]:
    """Return what can change the bytes besides model, imatrix and type."""
    rows_drawn = [ROWS, MATRIX_ROWS]
    return {"version": VERSION, "exponents": EXPONENTS, "rows": rows_drawn, "most": SCALE_MAX}


def metadata() -> dict[str, str]:
    """Return what goes into a file's metadata, without the project's prefix."""
    return {"awq": f"channels scaled by rms^a, a from 0 to {EXPONENTS[-1]}, version {VERSION}"}


def check(has_imatrix: bool, types: Collection[str], spec: str) -> None:
    """Raise UsageError, BadModel for a request without imatrix, types or a model that do not fit.

    A model that is not a file here is checked by `scaling.check` once it is.
    """
    if not has_imatrix:
        fix = "imatrix-lab imatrix build --model MODEL --corpus LANGUAGE --moments"
        raise UsageError("AWQ needs an imatrix, by which it scales channels", fix=fix)
    if whole := [t for t in types if t in _SCALED_TYPES]:
        raise UsageError(f"{whole[0]} is not rounded: AWQ has nothing to do", fix=WITHOUT)
    if model := resolve.unhashed(spec):
        scaling.check(model)


@dataclass(frozen=True)
class Activations:
    """What is known of the inputs of a model's tensors: an imatrix, and moments, if it has them.

    `entries`: sums (matrices, columns) and counts (matrices,), in the shapes of the tensors.
    """

    imatrix: Imatrix
    moments: Moments | None
    entries: Mapping[str, Entry]

    @classmethod
    def read(cls, path: Path, model: Model) -> "Activations":
        """Return what a file knows of a model; raises BadImatrix."""
        imatrix, entries = format.read(path), dict[str, Entry]()
        for name, (_, info) in weights.tensors(model).items():
            entry, shape = imatrix.entries.get(name), (math.prod(info.shape[2:]), info.shape[0])
            if entry and entry.sums.size == math.prod(shape):
                entry = entry.split(shape[0])
                counts = np.broadcast_to(entry.counts, shape[:1])
                entries[name] = Entry(entry.sums.reshape(shape), counts)
        return cls(imatrix, moments.read(path), entries)

    def importance(self, name: str, matrix: int, by_column: NDArray[Any]) -> NDArray[np.float32]:
        """Return what llama-quantize takes for inputs divided by scales, (columns,)."""
        entry = self.entries[name]
        count, sums = entry.counts[matrix], entry.sums[matrix]
        means = sums / count if count > 0 else np.ones_like(sums)
        return np.asarray(means / np.square(by_column), np.float32)

    def loss(self, name: str, matrix: int) -> "Loss":
        """Return how errors in a matrix become squared errors of its output."""
        entry, known = self.entries[name], self.moments
        if known is None or name not in known.first:
            return Loss(entry.sums[matrix], None)
        blocks, total = known.blocks(name, matrix), known.sums(name)[matrix]
        n_blocks, block, _ = blocks.shape
        means = np.zeros((n_blocks, block), np.float32)
        n_tokens = float(entry.counts[matrix])
        means.reshape(-1)[: total.size] = total / math.sqrt(n_tokens or math.inf)
        blocks -= means[:, :, None] * means[:, None, :]
        return Loss(means.reshape(-1)[: total.size], blocks)


class Loss(NamedTuple):
    """Sums over tokens, as in `imatrix.output_error`: E[x] and covariances in blocks, or E[x²]."""

    columns: NDArray[np.float32]
    blocks: NDArray[np.float32] | None

    def of(self, error: NDArray[np.float32], counts: NDArray[np.float64]) -> float:
        """Return the squared output of rows (rows, columns) that count so often."""
        if self.blocks is None:
            return float(counts @ (np.square(error) @ self.columns))
        n_blocks, block, _ = self.blocks.shape
        wide = np.zeros((len(error), n_blocks * block), np.float32)
        wide[:, : error.shape[1]] = error
        by_block = wide.reshape(len(error), n_blocks, block).transpose(1, 0, 2)
        lost = np.einsum("bri,bri->r", by_block @ self.blocks, by_block)
        return float(counts @ (lost + np.square(error @ self.columns)))


def scales(
    pair: Pair, squares: NDArray[np.float64], exponents: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return scales (sets, channels) for mean squares of the same shape and an exponent a set.

    Their geometric mean is 1, and that of channels that are never active.
    """
    active = squares > 0
    logs = np.log(np.where(active, squares, 1.0)) / 2
    means = logs.sum(axis=1, keepdims=True) / np.maximum(1, active.sum(axis=1, keepdims=True))
    powers = np.exp(np.where(active, logs - means, 0.0) * exponents[:, None])
    return np.asarray(np.clip(powers, 1 / SCALE_MAX, SCALE_MAX))


@dataclass(frozen=True)
class Found:
    """A pair with the exponent of each set of its channels.

    `shares`: of its readers' squared output, what is lost without scales and with them; the mean.
    """

    pair: Pair
    exponents: tuple[float, ...]
    shares: tuple[float, float]


@dataclass(frozen=True)
class Search:
    """A model, what is known of its inputs, and how it will be rounded.

    names : tensors that `rounding` rounds. Others are scaled along where they have to be.
    """

    ggml: Ggml
    model: Model
    activations: Activations
    names: Collection[str]
    rounding: Rounding

    @cached_property
    def tensors(self) -> dict[str, FileTensor]:
        """The model's tensors by name."""
        return weights.tensors(self.model)

    def places(self) -> Places:
        """Return the pairs with readers that are rounded and known; raises BadModel: none.

        Moments tell which matrices read one input: a pair that lacks one of them is refused.
        """
        places, pairs = scaling.places(self.model), list[Pair]()
        skipped, read_by = dict(places.skipped), defaultdict[str, set[str]](set)
        known = self.activations.moments.first if self.activations.moments else {}
        for name, first in known.items():
            read_by[first].add(name)
        for pair in places.pairs:
            together = set[str]().union(*(read_by[known[n]] for n in pair.readers if n in known))
            if odd := sorted(together - set(pair.readers)):
                skipped[pair.name] = f"{odd[0]} reads these channels too"
            elif self._read(pair):
                pairs.append(pair)
            else:
                skipped[pair.name] = "nothing that is rounded and in the imatrix reads it"
        if not pairs:
            why = next(iter(skipped.values()), "it has no layers")
            what = f"no channels of this model can be scaled: {why}"
            raise BadModel(what, where=self.model.path, fix=WITHOUT)
        return Places(tuple(pairs), skipped)

    def scales(self, found: Found) -> NDArray[np.float64]:
        """Return a pair's scales (sets, channels)."""
        return scales(found.pair, self._squares(found.pair), np.array(found.exponents))

    def best(self, pair: Pair) -> Found:
        """Return a pair with the exponents that lose least."""
        squares, shape = self._squares(pair), (len(EXPONENTS), pair.n_sets)
        grid = [scales(pair, squares, np.full(pair.n_sets, e)) for e in EXPONENTS]
        columns, total = [pair.columns(s).astype(np.float32) for s in grid], np.zeros(shape)
        readers = self._read(pair)
        for name in readers:
            lost, energy = np.zeros(shape), np.zeros(pair.n_sets)
            for matrix, values, counts, loss in self._samples(name):
                which = matrix if pair.n_sets > 1 else 0
                energy[which] += loss.of(values, counts)
                for i, by_set in enumerate(columns):
                    by_column = by_set[which]
                    rounded = self.rounding(name, matrix, values * by_column, by_column)
                    lost[i, which] += loss.of(rounded / by_column - values, counts)
            total += np.divide(lost, energy, out=np.zeros(shape), where=energy > 0) / len(readers)
        if not np.isfinite(total).all():
            what = f"the moments of {readers[0]} are NaN or infinite"
            raise BadImatrix(what, fix="imatrix-lab imatrix check FILE --model MODEL")
        exponents = tuple(EXPONENTS[i] for i in total.argmin(axis=0))
        return Found(pair, exponents, (total[0].mean(), total.min(axis=0).mean()))

    def _read(self, pair: Pair) -> list[str]:
        """Return a pair's readers that are rounded, and whose inputs are known."""
        return [n for n in pair.readers if n in self.names and n in self.activations.entries]

    def _squares(self, pair: Pair) -> NDArray[np.float64]:
        """Return mean squares of a pair's channels (sets, channels), over all tokens."""
        entry = self.activations.entries[self._read(pair)[0]]
        sums, counts = entry.sums.astype(np.float64), entry.counts.astype(np.float64)
        if pair.n_sets == 1:
            sums, counts = sums.sum(axis=0, keepdims=True), counts.sum(keepdims=True)
        return pair.channels(sums) / np.maximum(counts, 1)[:, None]

    def _samples(
        self, name: str
    ) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float64], Loss]]:
        """Yield some rows of each matrix that saw tokens, and what they count."""
        tensor, entry = self.tensors[name], self.activations.entries[name]
        n_columns, n_rows = tensor.info.shape[:2]
        step = max(1, _STRIP_WEIGHTS // n_columns)
        for matrix in np.flatnonzero(entry.sums.any(axis=1)).tolist():
            sizes = np.empty(n_rows)
            for at in range(0, n_rows, step):
                n = min(step, n_rows - at)
                strip = weights.read_rows(self.ggml, tensor, matrix * n_rows + at, n)
                sizes[at : at + n] = np.square(strip) @ entry.sums[matrix]
            if not np.isfinite(sizes).all():
                raise BadModel(f"{name} has NaN or infinite weights", where=tensor.path)
            sample = rows.draw(sizes, max(MATRIX_ROWS, ROWS // len(entry.sums)))
            if len(sample.rows):
                values = weights.read_some(self.ggml, tensor, matrix * n_rows + sample.rows)
                loss = self.activations.loss(name, matrix)
                yield matrix, values, sample.weights, loss


def choose(
    search: Search, places: Places, threads: int, journal: Path, progress: Progress
) -> list[Found]:
    """Return the exponents of all pairs of a model.

    What is done is listed in `journal`: a run that was killed goes on from there.
    """
    journal.touch()
    text = journal.read_text("utf-8").rpartition("\n")  # a killed run may have left half a line
    journal.write_text("".join(text[:2]), "utf-8")
    lines = map(json.loads, text[0].splitlines())
    done = {name: (tuple(exponents), tuple(shares)) for name, exponents, shares in lines}
    sizes = {p: sum(search.tensors[n].info.n_elements for n in p.readers) for p in places.pairs}
    n_done = sum(size for pair, size in sizes.items() if pair.name in done)
    left = [pair for pair in places.pairs if pair.name not in done]
    with (
        threadpool_limits(1, user_api="blas"),
        progress.task("scales of channels", sum(sizes.values()), "weights") as task,
        journal.open("a", encoding="utf-8") as file,
    ):
        task.update(n_done, "continuing an earlier run" if n_done else "")
        for pair, found in native.in_order(search.best, left, threads):
            done[pair.name] = found.exponents, found.shares
            file.write(json.dumps([pair.name, found.exponents, found.shares]) + "\n")
            file.flush()
            task.update(n_done := n_done + sizes[pair])
    return [Found(pair, *done[pair.name]) for pair in places.pairs]


def rounded(types: Mapping[str, str]) -> set[str]:
    """Return the tensors that are rounded, of some with types."""
    return {name for name, type_name in types.items() if type_name not in _SCALED_TYPES}


def by_ggml(ggml: Ggml, types: Mapping[str, str], activations: Activations) -> Rounding:
    """Return how llama-quantize rounds tensors to types, with the imatrix of scaled inputs."""

    def round_rows(
        name: str, matrix: int, values: NDArray[np.float32], by_column: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        importance = activations.importance(name, matrix, by_column)
        return ggml.dequantize(ggml.quantize(values, types[name], importance), types[name])

    return round_rows


def by_feedback(
    kernel: feedback.Kernel, types: Mapping[str, str], activations: Activations
) -> Rounding:
    """Return how tensors are rounded with feedback, where they are; else as by `by_ggml`."""
    plain, known = by_ggml(kernel.ggml, types, activations), activations.moments
    assert known

    @lru_cache(4)
    def factor(first: str, matrix: int) -> NDArray[np.float32]:
        n_tokens = float(activations.imatrix.entries[first].counts[matrix])
        n_columns = known.sums(first).shape[1]
        return feedback.factor(known.blocks(first, matrix), feedback.shrinkage(n_tokens, n_columns))

    def round_rows(
        name: str, matrix: int, values: NDArray[np.float32], by_column: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        if types[name] not in feedback.TYPES or name not in known.first:
            return plain(name, matrix, values, by_column)
        blocks = factor(known.first[name], matrix)
        wide = np.ones(blocks.shape[:2], np.float32)
        wide.reshape(-1)[: by_column.size] = by_column
        # of inputs divided by their scales
        blocks = blocks * wide[:, :, None] / wide[:, None, :]
        importance = activations.importance(name, matrix, by_column)
        raw = kernel.rounded(values, types[name], blocks, importance)
        return kernel.ggml.dequantize(raw, types[name])

    return round_rows


def scaled(
    search: Search, found: Sequence[Found], model_path: Path, imatrix_path: Path, progress: Progress
) -> None:
    """Write a model with scaled channels, as one file, and the imatrix that goes with it.

    Tensors that are scaled become F16 if they were BF16, which has fewer digits. What a killed run
    has written of the model is kept. Raises BadModel: weights that F16 cannot hold.
    """
    of_pairs = {f.pair: search.scales(f) for f in found if any(f.exponents)}
    infos = {name: t.info for name, t in search.tensors.items()}
    factors = scaling.factors(of_pairs, infos)
    format.write(imatrix_path, _divided(search.activations, factors))
    types = {name: _SCALED_TYPES[infos[name].type_name] for name in factors}

    def values(tensor: FileTensor) -> Iterator[bytes]:
        path, info = tensor
        n_rows, step = weights.n_rows(info), max(1, _STRIP_WEIGHTS // info.shape[0])
        for at in range(0, n_rows, step):
            strip = weights.read_rows(search.ggml, tensor, at, min(step, n_rows - at))
            with np.errstate(over="ignore"):
                strip = factors[info.name].apply(strip, at, n_rows)
                numbers = strip.astype(np.float16 if types[info.name] == "F16" else np.float32)
            if not np.isfinite(numbers).all():
                what = f"{info.name} has weights that F16 cannot hold once they are scaled"
                raise BadModel(what, where=path, fix=f"use an F32 model, or {WITHOUT}")
            yield numbers.tobytes()

    rewrite.write(model_path, search.model, types, values, progress, "scaling channels")


def _divided(activations: Activations, factors: Mapping[str, Factors]) -> Imatrix:
    """Return the imatrix, and moments, of inputs divided by their scales."""
    columns = {n: f.columns for n, f in factors.items() if f.columns is not None}
    imatrix, known = activations.imatrix, activations.moments
    entries, more = dict(imatrix.entries), {t.name: t for t in imatrix.more}
    for name in entries.keys() & columns.keys():
        by_column, entry = columns[name], entries[name]
        sums = entry.sums.reshape(-1, by_column.shape[1]) / np.square(by_column)
        entries[name] = Entry(sums.reshape(entry.sums.shape), entry.counts)
    if known:
        for first in columns.keys() & set(known.inputs):
            more |= {t.name: t for t in _divided_moments(known, first, columns[first])}
    return dataclasses.replace(imatrix, entries=entries, more=tuple(more.values()))


def _divided_moments(known: Moments, first: str, columns: NDArray[np.float32]) -> Iterator[Tensor]:
    n_matrices, n_blocks, block = known.shape(first)
    inverse = np.ones((n_matrices, n_blocks * block), np.float32)
    inverse[:, : columns.shape[1]] = 1 / columns
    sums = known.sums(first)
    yield Tensor.of(first + moments.SUMS, sums * inverse[:, : sums.shape[1]])

    def blocks() -> Iterator[NDArray[np.float32]]:
        for matrix in range(n_matrices):
            by_block = inverse[matrix].reshape(n_blocks, block)
            yield known.blocks(first, matrix) * by_block[:, :, None] * by_block[:, None, :]

    yield Tensor(first + moments.BLOCKS, (n_matrices * n_blocks, block, block), blocks)


def told(places: Places, found: Sequence[Found]) -> str:
    """Return in a sentence what was scaled, and what not and why."""
    n = sum(any(f.exponents) for f in found)
    before, after = (sum(f.shares[i] for f in found) / len(found) for i in (0, 1))
    text = f"channels scaled in {n} of {len(found)} places (AWQ); predicted share of the readers'"
    text += f" squared output that is lost: {before:.2g} before, {after:.2g} after"
    reasons = Counter(places.skipped.values())
    return text + "".join(f"; not in {n} places: {why}" for why, n in sorted(reasons.items()))
