"""Hashes of n words or characters in a row, to find what texts have in common."""

import itertools
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.corpus.clean import scripts

_BASE = 0x9E3779B97F4A7C15


def shingles(
    texts: Sequence[str], n_words: int, n_characters: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    r"""Return 64-bit hashes of all runs of `n_words` words and of `n_characters` characters.

    Words are ``[\p{L}\p{M}\p{N}]+`` without regard to case; what is between them is ignored.
    In scripts without spaces the unit is the character. A text shorter than a run has none.
    The hash is a polynomial modulo 2^64 over the words' CRC-32: the same on every machine.
    With the hashes, one text after the other, are the offsets where each text's begin, (texts + 1).
    """
    folded = [text.casefold() for text in texts]
    ends = np.cumsum([len(text) for text in folded], dtype=np.intp)
    points = scripts.code_points("".join(folded))
    spacing = scripts.word_characters()[points]
    spaced = np.where(spacing == 1, points, 32).astype("<u4").tobytes().decode("utf-32-le")
    words = [spaced[end - len(text) : end].split() for text, end in zip(folded, ends, strict=True)]
    coded = map(zlib.crc32, map(str.encode, itertools.chain.from_iterable(words)))
    word_ends = np.cumsum([len(w) for w in words], dtype=np.intp)
    hashes, offsets = _runs(np.fromiter(coded, np.uint64), word_ends, n_words)
    if spacing.max(initial=0) < 2:
        return hashes, offsets
    unspaced = spacing == 2
    character_ends = np.concatenate([[0], np.cumsum(unspaced)])[ends]
    more, more_offsets = _runs(points[unspaced].astype(np.uint64), character_ends, n_characters)
    of_words, of_characters = np.split(hashes, offsets[1:]), np.split(more, more_offsets[1:])
    parts = itertools.chain.from_iterable(zip(of_words, of_characters, strict=True))
    return np.concatenate([hashes[:0], *parts]), offsets + more_offsets


def _runs(
    units: NDArray[np.uint64], ends: NDArray[np.intp], n: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the hash of every run of n units inside one text, and offsets by text."""
    sizes = np.diff(ends, prepend=0)
    offsets = np.concatenate([[0], np.cumsum(np.maximum(sizes - n + 1, 0))]).astype(np.uint64)
    if units.size < n:
        return np.empty(0, np.uint64), offsets
    units = _mix(units)
    hashes = units[: units.size - n + 1].copy()
    for i in range(1, n):
        hashes *= np.uint64(_BASE)
        hashes += units[i : i + hashes.size]
    inside = np.ones(units.size, bool)
    for i in range(1, n):  # the last units of a text begin no run
        inside[np.maximum(ends - i, ends - sizes)[sizes > 0]] = False
    return _mix(hashes[inside[: hashes.size]]), offsets


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of splitmix64 (Steele, Lea and Flood, 2014) of each value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
