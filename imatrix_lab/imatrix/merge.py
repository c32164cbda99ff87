"""Mixtures of importance matrices: sums of squares add, so a mixture needs no model run.

A merge multiplies, tensor by tensor, the sums *and* the counts of file f by one factor, as if
each of its tokens had been seen that many times:

    S = sum_f a_f S_f          C = sum_f a_f C_f          mean = S / C

``tokens``: a_f = w_f. With equal weights that is llama-imatrix's ``--in-file A --in-file B``.
``energy``: a_f = w_f / (sum over all matrices and columns of S_f). Either way the factors are
scaled to keep the number of tokens. With energy, the means of a dense tensor are the w-weighted
sum of the files' energies, each normalised to one: a file counts by its weight, whatever its tokens
and however large its activations are. Of a tensor with experts the whole has that property; within
one expert files count by the tokens that reached it, so that three do not outvote three thousand.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.files import from_json
from imatrix_lab.core.names import readable, slug
from imatrix_lab.core.outputs import Other, any_file
from imatrix_lab.corpus.mixture import BY_TOKENS, is_language
from imatrix_lab.errors import BadImatrix, UsageError
from imatrix_lab.imatrix import format, moments
from imatrix_lab.imatrix.align import aligned, paths
from imatrix_lab.imatrix.format import LEGACY_WINDOW, MODEL, Entry, Imatrix, Tensor
from imatrix_lab.imatrix.moments import Moments
from imatrix_lab.models.gguf import read_header

BY = ("energy", "tokens")
KEY = "imatrix_lab.merge"
_LABEL_CHARS_MAX = 40
_PERCENT_OFF_MAX = 1e-4


@dataclass(frozen=True)
class MergeInput:
    """One file of a mixture: its weight (see the module; more than 0) and sha256."""

    path: Path
    imatrix: Imatrix
    weight: float = 1.0
    sha256: str = ""


def merge(inputs: Sequence[MergeInput], by: str) -> Imatrix:
    """Return the mixture of some files; a tensor is mixed from the files that have it.

    Counts are whole, as llama.cpp rounds them when it reads; sums are scaled with them, so that
    the means keep float32 precision. The metadata record the inputs, under `KEY`. Raises
    UsageError for a weight that is not positive, and BadImatrix for files that do not fit.
    """
    for item in inputs:
        if not (np.isfinite(item.weight) and item.weight > 0):
            raise UsageError(f"the weight of {item.path} is {item.weight}, not a positive number")
    names = {name for item in inputs for name in item.imatrix.entries}
    entries = {name: _mixed(name, inputs, by) for name in sorted(names)}
    largest = max(inputs, key=lambda item: item.imatrix.n_tokens())
    window = largest.imatrix.chunk_size or LEGACY_WINDOW
    n_tokens = Imatrix(entries, (), 0, 0).n_tokens()
    named = label(inputs, by)
    language = named if all(is_language(i.imatrix.language) for i in inputs) else ""
    datasets = tuple(dict.fromkeys(d for item in inputs for d in item.imatrix.datasets))
    name = {format.LANGUAGE if language else format.LABEL: named}
    metadata = {**name, **_common(inputs), KEY: _record(inputs, by)}
    about, tensors = _moments(inputs, by)
    sizes, metadata = (n_tokens // window, window), metadata | about
    return Imatrix(entries, datasets, *sizes, language, metadata, more=tensors)


def other_than(files: Sequence[tuple[Path, float]], by: str) -> Other:
    """Return what tells mixtures of these files and weights, in any of their states, from others.

    A ``.dat`` does not say what it is: there it lets any pass.
    """
    same = {"by": by, "inputs": [(readable(path.name), weight) for path, weight in files]}

    def other(path: Path) -> str:
        if path.suffix == ".dat":
            return ""
        if what := format.other_than({}, KEY)(path):
            return what
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = dict(from_json(read_header(path).text(KEY)))
            record["inputs"] = [(i["name"], i["weight"]) for i in record["inputs"]]
            return "" if record == same else "another mixture of imatrices"
        return any_file(path)

    return other


def without_each(inputs: Sequence[MergeInput], by: str) -> Iterator[Imatrix]:
    """Return an iterator over the mixtures that lack one file each, in order."""
    if len(inputs) < 3:
        raise UsageError("leaving one out of a mixture takes three files or more")
    return (merge([item for item in inputs if item is not left], by) for left in inputs)


def label(inputs: Sequence[MergeInput], by: str) -> str:
    """Return a name for quants such as ``nb75-en25``; ``nb-en`` where all weights are equal.

    Where whole percents are not exact, or it would be long, it has part of a digest instead.
    """
    names = [slug(i.imatrix.label or i.path.stem) for i in inputs]
    percents = [100 * i.weight / sum(j.weight for j in inputs) for i in inputs]
    exact = True
    if len({i.weight for i in inputs}) > 1:
        names = [f"{name}{percent:.0f}" for name, percent in zip(names, percents, strict=True)]
        exact = all(round(p) and abs(p - round(p)) < _PERCENT_OFF_MAX for p in percents)
    name = "-".join(names) + (BY_TOKENS if by == "tokens" else "")
    if exact and len(name) <= _LABEL_CHARS_MAX:
        return name
    digest = hashlib.sha256(_record(inputs, by).encode()).hexdigest()[:8]
    return f"mix-of-{len(inputs)}-{digest}"


def _mixed(name: str, inputs: Sequence[MergeInput], by: str) -> Entry:
    inputs = [item for item in inputs if name in item.imatrix.entries]
    entries = aligned(name, [(item.path, item.imatrix) for item in inputs])
    sums, counts = np.zeros(entries[0].sums.shape), np.zeros(entries[0].counts.shape)
    for factor, entry in zip(_factors(name, inputs, entries, by), entries, strict=True):
        sums += factor * entry.sums
        counts += factor * entry.counts
    whole = Entry(sums, counts).whole()
    return Entry(whole.sums.astype(np.float32), whole.counts.astype(np.float32))


def _factors(
    name: str, inputs: Sequence[MergeInput], entries: Sequence[Entry], by: str
) -> NDArray[np.float64]:
    factors = np.array([item.weight for item in inputs])
    seen = np.array([e.counts.sum(dtype=np.float64) for e in entries])
    energy = np.array([e.sums.sum(dtype=np.float64) for e in entries])
    if not energy.any() or not seen.any():
        files = [(item.path, item.imatrix) for item in inputs]
        raise BadImatrix(f"{name} is zero throughout", where=paths(files))
    if by == "energy":
        factors = np.divide(factors, energy, out=np.zeros(len(entries)), where=energy > 0)
    return np.asarray(factors * seen.sum() / (factors @ seen))


def _moments(inputs: Sequence[MergeInput], by: str) -> tuple[dict[str, str], list[Tensor]]:
    """Return the mixture's moments; none if a file has none."""
    files = [moments.read(item.path) for item in inputs if item.path.is_file()]
    sources = [m for m in files if m is not None]
    if len(sources) < len(inputs):
        return {}, []
    first, names = sources[0].first, sources[0].inputs
    if any(m.first != first or m.shape(n) != sources[0].shape(n) for m in sources for n in names):
        where = ", ".join(str(item.path) for item in inputs)
        fix = "use files that were collected with the same --moments and --full"
        raise BadImatrix("the files' moments have different blocks", where=where, fix=fix)
    tensors = list[Tensor]()
    for name in names:
        tensors += _mixed_moments(name, sources, inputs, by)
    return {moments.KEY: sources[0].header.text(moments.KEY)}, tensors


def _mixed_moments(
    name: str, sources: Sequence[Moments], inputs: Sequence[MergeInput], by: str
) -> tuple[Tensor, Tensor]:
    entries = aligned(name, [(item.path, item.imatrix) for item in inputs])
    factors = _factors(name, inputs, entries, by)
    counts = factors @ np.array([e.counts for e in entries], np.float64)
    whole = Entry(np.zeros((counts.size, 1)), counts).whole().counts  # as E[x²] is scaled
    scale = np.divide(whole, counts, out=np.zeros(counts.size), where=counts > 0)

    def sums() -> Iterator[NDArray[Any]]:
        parts = zip(factors, sources, strict=True)
        yield sum((f * m.sums(name) for f, m in parts), np.zeros(1)) * scale[:, None]

    def blocks() -> Iterator[NDArray[Any]]:
        for matrix, share in enumerate(scale):
            parts = zip(factors, sources, strict=True)
            yield sum((f * m.blocks(name, matrix) for f, m in parts), np.zeros(1)) * share

    n_matrices, n_blocks, block = sources[0].shape(name)
    return (
        Tensor(name + moments.SUMS, sources[0].sums(name).shape, sums),
        Tensor(name + moments.BLOCKS, (n_matrices * n_blocks, block, block), blocks),
    )


def _common(inputs: Sequence[MergeInput]) -> dict[str, str]:
    """Return the metadata on model and toolchain that all files share, and their texts'."""
    first, *rest = [item.imatrix.metadata for item in inputs]
    common = {
        key: value
        for key, value in first.items()
        if key.startswith(("imatrix_lab.model.", "imatrix_lab.toolchain."))
        and all(m.get(key) == value for m in rest)
    }
    for key, joint in ((format.LICENCE, "; "), (format.TEXTS, " ")):
        if values := [m[key] for m in (first, *rest) if key in m]:
            common[key] = joint.join(dict.fromkeys(values))
    return common


def _record(inputs: Sequence[MergeInput], by: str) -> str:
    records = [
        {
            "name": readable(i.path.name),
            "language": i.imatrix.language,
            "weight": i.weight,
            "n_tokens": i.imatrix.n_tokens(),
            "n_ctx": i.imatrix.chunk_size,
            **({"windows": "document"} if i.imatrix.by_document else {}),
            "datasets": list(i.imatrix.datasets),
            "model_sha256": i.imatrix.metadata.get(MODEL, ""),
            "sha256": i.sha256,
        }
        for i in inputs
    ]
    return json.dumps({"by": by, "inputs": records}, ensure_ascii=False)
