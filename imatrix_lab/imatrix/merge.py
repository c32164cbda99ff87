"""Mixtures of importance matrices: sums of squares add, so a mixture costs no model run.

Every merge multiplies, tensor by tensor, the sums *and* the counts of file f by one factor, as if
each of its tokens had been seen so many times:

    S = sum_f a_f S_f          C = sum_f a_f C_f          mean = S / C

``tokens``: a_f = w_f. With equal weights that is llama-imatrix's ``--in-file A --in-file B``.
``energy``: a_f = w_f / (sum over all matrices and columns of S_f). Either way the factors are
scaled to keep the number of tokens. With energy, the means of a dense tensor are the w-weighted
sum of the files' energies, each normalised to one: a file counts by its weight, whatever its tokens
and however large its activations are. Of a tensor with experts the whole has that property; within
one expert files count by the tokens that reached it, so that three do not outvote three thousand.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.errors import BadImatrix, UsageError
from imatrix_lab.imatrix.align import aligned
from imatrix_lab.imatrix.format import LEGACY_WINDOW, MODEL, Entry, Imatrix

BY = ("energy", "tokens")
KEY = "imatrix_lab.merge"
_LICENCE = "imatrix_lab.corpus.licence"
_LABEL_CHARS_MAX = 40
_PERCENT_OFF_MAX = 1e-4


@dataclass(frozen=True)
class Part:
    """One file of a mixture.

    Attributes
    ----------
    weight : see the module; more than 0.
    sha256 : of the file.
    """

    path: Path
    imatrix: Imatrix
    weight: float = 1.0
    sha256: str = ""


def merge(parts: Sequence[Part], by: str) -> Imatrix:
    """Return the mixture of some files; one that lacks a tensor does not count in it.

    Counts are whole, as llama.cpp rounds them when it reads; sums are scaled with them, so that
    the means keep float32 precision. The metadata say what went in, under `KEY`.

    Raises
    ------
    UsageError : a weight that is not a positive number.
    BadImatrix : files that do not fit each other, or values that must not be merged.
    """
    for part in parts:
        if not (np.isfinite(part.weight) and part.weight > 0):
            raise UsageError(f"the weight of {part.path} is {part.weight}, not a positive number")
    names = sorted({name for part in parts for name in part.imatrix.entries})
    entries = {}
    for name in names:
        those = [p for p in parts if name in p.imatrix.entries]
        weights = np.array([p.weight for p in those])
        found = aligned(name, [(p.path, p.imatrix) for p in those])
        entries[name] = _mixed(name, those, found, weights, by)
    window = _window(parts)
    n_tokens = Imatrix(entries, (), 0, 0).n_tokens()
    language = label(parts, by)
    return Imatrix(
        entries,
        tuple(dict.fromkeys(d for p in parts for d in p.imatrix.datasets)),
        n_tokens // window,
        window,
        language,
        {"imatrix_lab.language": language, **_common(parts), KEY: _record(parts, by)},
    )


def without_each(parts: Sequence[Part], by: str) -> Iterator[Imatrix]:
    """Return the mixtures that leave out one file each, in order, each mixed when asked for.

    Raises
    ------
    UsageError : fewer than three files, so that nothing is mixed.
    """
    if len(parts) < 3:
        raise UsageError("leaving one out of a mixture takes three files or more")
    return (merge([p for p in parts if p is not left], by) for left in parts)


def label(parts: Sequence[Part], by: str) -> str:
    """Return a name such as ``nb75-en25``; ``nb-en`` where all weigh the same.

    It names quants. So where whole percents would not tell one mixture from another, and where
    it would be long, it has part of a digest.
    """
    names = [re.sub(r"\W+", "-", p.imatrix.language or p.path.stem) for p in parts]
    percents = [100 * p.weight / sum(q.weight for q in parts) for p in parts]
    exact = True
    if len({p.weight for p in parts}) > 1:
        names = [f"{name}{percent:.0f}" for name, percent in zip(names, percents, strict=True)]
        exact = all(round(p) and abs(p - round(p)) < _PERCENT_OFF_MAX for p in percents)
    found = "-".join(names) + ("-by-tokens" if by == "tokens" else "")
    if exact and len(found) <= _LABEL_CHARS_MAX:
        return found
    digest = hashlib.sha256(_record(parts, by).encode()).hexdigest()[:8]
    return f"mix-of-{len(parts)}-{digest}"


def _mixed(
    name: str, parts: Sequence[Part], entries: list[Entry], factors: NDArray[np.float64], by: str
) -> Entry:
    """Return the weighted sum, as `merge` has it; `factors` begin as weights."""
    seen = np.array([e.counts.sum(dtype=np.float64) for e in entries])
    energy = np.array([e.sums.sum(dtype=np.float64) for e in entries])
    if not energy.any() or not seen.any():
        raise BadImatrix(f"{name} is zero throughout", where=", ".join(str(p.path) for p in parts))
    if by == "energy":
        factors = np.divide(factors, energy, out=np.zeros(len(entries)), where=energy > 0)
    factors = factors * seen.sum() / (factors @ seen)
    sums, counts = np.zeros(entries[0].sums.shape), np.zeros(entries[0].counts.shape)
    for factor, entry in zip(factors, entries, strict=True):
        sums += factor * entry.sums
        counts += factor * entry.counts
    whole = Entry(sums, counts).whole()
    return Entry(whole.sums.astype(np.float32), whole.counts.astype(np.float32))


def _window(parts: Sequence[Part]) -> int:
    """Return the window's length of the file with the most tokens."""
    largest = max(parts, key=lambda p: p.imatrix.n_tokens())
    return largest.imatrix.chunk_size or LEGACY_WINDOW


def _common(parts: Sequence[Part]) -> dict[str, str]:
    """Return what the files' own metadata say of model and toolchain, if alike, and licences."""
    first, *rest = [p.imatrix.metadata for p in parts]
    shared = ("imatrix_lab.model.", "imatrix_lab.toolchain.")
    found = {
        key: value
        for key, value in first.items()
        if key.startswith(shared) and all(m.get(key) == value for m in rest)
    }
    licences = [m[_LICENCE] for m in (first, *rest) if _LICENCE in m]
    if licences:
        found[_LICENCE] = "; ".join(dict.fromkeys(licences))
    return found


def _record(parts: Sequence[Part], by: str) -> str:
    """Return what went in, as JSON."""
    inputs = [
        {
            "name": p.path.name,
            "language": p.imatrix.language,
            "weight": p.weight,
            "n_tokens": p.imatrix.n_tokens(),
            "n_ctx": p.imatrix.chunk_size,
            "datasets": list(p.imatrix.datasets),
            "model_sha256": p.imatrix.metadata.get(MODEL, ""),
            "sha256": p.sha256,
        }
        for p in parts
    ]
    return json.dumps({"by": by, "inputs": inputs}, ensure_ascii=False)
