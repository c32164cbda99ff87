"""Hashes of n words or characters in a row, to find what texts have in common."""

import functools
import itertools
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.corpus.clean import scripts

_BASE = 0x9E3779B97F4A7C15
TABLED = 64
"""Bytes of a word, at most, for which there are tables."""


def shingles(
    texts: Sequence[str], n_words: int, n_characters: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    r"""Return 64-bit hashes of all runs of `n_words` words and of `n_characters` characters.

    Texts are casefolded. Words are ``[\p{L}\p{M}\p{N}]+``; what is between them is ignored.
    In scripts without spaces the unit is the character. A text shorter than a run has none.
    The hash is a polynomial modulo 2^64 over the words' CRC-32: the same on every machine.
    With the hashes, one text after the other, are the offsets where each text's begin, (texts + 1).
    """
    ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.intp) - 1
    points = scripts.code_points(" ".join(texts))  # the space keeps neighbours' words apart
    spacing = scripts.word_characters()[points]
    word_ends = np.searchsorted(_edges(spacing == 1)[0], ends)
    hashes, offsets = _runs(word_crcs(points, spacing == 1), word_ends, n_words)
    if spacing.max(initial=0) < 2:
        return hashes, offsets
    unspaced = spacing == 2
    character_ends = np.concatenate([[0], np.cumsum(unspaced)])[ends]
    more, more_offsets = _runs(points[unspaced].astype(np.uint64), character_ends, n_characters)
    of_words, of_characters = np.split(hashes, offsets[1:]), np.split(more, more_offsets[1:])
    parts = itertools.chain.from_iterable(zip(of_words, of_characters, strict=True))
    return np.concatenate([hashes[:0], *parts]), offsets + more_offsets


def _edges(inside: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return where each run of true values begins and ends."""
    padded = np.concatenate([[False], inside, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return edges[::2], edges[1::2]


def word_crcs(points: NDArray[np.intp], is_word: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return the CRC-32 of each word's UTF-8.

    A CRC is linear: that of a word is the sum (xor) of what its bytes contribute, each by its
    distance from the word's end, and of what its length does.
    """
    text = np.where(is_word, points, 32).astype("<u4").tobytes().decode("utf-32-le").encode()
    letters = np.frombuffer(text, np.uint8)
    is_letter = letters != 32
    starts, ends = _edges(is_letter)
    if not starts.size:
        return np.empty(0, np.uint64)
    letters, lengths = letters[is_letter], ends - starts
    places = np.cumsum(lengths) - lengths
    n_after = np.full(letters.size, -1)
    n_after[places] = lengths - 1
    np.cumsum(n_after, out=n_after)  # of each byte: how many come after it in its word
    np.minimum(n_after, TABLED - 1, out=n_after)
    n_after <<= 8
    n_after |= letters
    of_byte, of_length = _crc_tables()
    crcs = np.bitwise_xor.reduceat(of_byte[n_after], places)
    crcs ^= of_length[np.minimum(lengths, TABLED)]
    for i in np.flatnonzero(lengths > TABLED):
        crcs[i] = zlib.crc32(text[starts[i] : ends[i]])
    return crcs.astype(np.uint64)


@functools.cache
def _crc_tables() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return what a byte adds to a CRC-32, at 256 x bytes after it + byte; what a length does."""
    zeros = [zlib.crc32(bytes(n)) for n in range(TABLED + 1)]
    of_byte = [
        zlib.crc32(bytes([byte, *bytes(n)])) ^ zeros[n + 1]
        for n, byte in itertools.product(range(TABLED), range(256))
    ]
    return np.array(of_byte, np.uint32), np.array(zeros, np.uint32)


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
