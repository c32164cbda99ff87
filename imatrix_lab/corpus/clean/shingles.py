"""Hashes of n running words or characters: what texts have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imatrix_lab.corpus.clean import scripts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers modulo 2^64 never vanish


def shingles(text: str, n_words: int, n_characters: int) -> NDArray[np.uint64]:
    r"""Return 64-bit hashes of all runs of `n_words` words and of `n_characters` characters.

    Words are ``[\p{L}\p{M}\p{N}]+`` without regard to case; what stands between does not count.
    In scripts without spaces (Han, kana, Thai, Lao, Khmer, Burmese, Tibetan) the unit is the
    character. A text shorter than a run has none.
    The hash is a polynomial modulo 2^64 of well-mixed code points: the same on every machine.
    """
    import numpy as np

    points = scripts.code_points(text.casefold())
    kind = scripts.word_characters()[points]
    mixed = _mix(points.astype(np.uint64))
    found = [
        _runs(_words(mixed, kind == 1), n_words),
        _runs(mixed[kind == 2], n_characters),
    ]
    return np.concatenate(found)


def _words(mixed: NDArray[np.uint64], inside: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return one hash a word: a polynomial over its characters."""
    import numpy as np

    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    if not starts.size:
        return np.empty(0, np.uint64)
    at = np.flatnonzero(inside)
    lengths = ends - starts
    place = np.arange(at.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    terms = mixed[at] * _powers(int(lengths.max()))[place]
    return _mix(np.add.reduceat(terms, np.cumsum(lengths) - lengths))


def _runs(units: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Return the hash of every run of n units."""
    import numpy as np

    if units.size < n:
        return np.empty(0, np.uint64)
    last = units.size - n + 1
    found = np.zeros(last, np.uint64)
    for i in range(n):
        found = found * np.uint64(_BASE) + units[i : i + last]
    return _mix(found)


def _powers(n: int) -> NDArray[np.uint64]:
    import numpy as np

    return np.cumprod(np.full(n, _BASE, np.uint64))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of splitmix64 (Steele, Lea and Flood, 2014) of each value."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
