"""Which script a character belongs to, as arrays over code points."""

import functools
import re

import numpy as np
import regex
from numpy.typing import NDArray

from imatrix_lab.corpus.languages import SCRIPT_PARTS

UNSPACED = ("Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt")
"""Unicode scripts whose words stand without spaces."""

_ASSIGNED = 0x32400  # no letters above the third plane's ideographs


@functools.cache
def _characters() -> str:
    """Return every code point as text, surrogates as spaces."""
    return "".join(chr(c) if not 0xD800 <= c < 0xE000 else " " for c in range(_ASSIGNED))


def _of(pattern: str) -> NDArray[np.bool_]:
    matches = np.zeros(_ASSIGNED + 1, bool)
    for run in regex.finditer(f"(?:{pattern})+", _characters()):
        matches[run.start() : run.end()] = True
    return matches


@functools.cache
def letters_of(script: str) -> NDArray[np.uint8]:
    """Return for each code point: 2 for a letter or vowel sign of this script, 1 of another.

    Characters common to scripts (digits, punctuation, combining accents) are 0.
    """
    parts = "".join(rf"\p{{Script={part}}}" for part in SCRIPT_PARTS.get(script, (script,)))
    letters = _of(r"[\p{L}\p{M}]") & ~_of(r"[\p{Script=Common}\p{Script=Inherited}]")
    return letters.astype(np.uint8) + (letters & _of(f"[{parts}]"))


@functools.cache
def maybe_other(script: str) -> re.Pattern[str]:
    """Return the pattern of a character that may be a letter of another script.

    Those above U+FFFF are all taken for such: a set of characters below is a table.
    """
    known = letters_of(script)[:0x10000] != 1
    edges = np.flatnonzero(np.diff(known, prepend=False, append=False)).tolist()
    runs = zip(edges[::2], edges[1::2], strict=True)
    return re.compile("[^" + "".join(rf"\u{a:04x}-\u{b - 1:04x}" for a, b in runs) + "]")


@functools.cache
def word_characters() -> NDArray[np.uint8]:
    r"""Return for each code point: 1 for ``\p{L}\p{M}\p{N}``, 2 if its script has no spaces."""
    words = _of(r"[\p{L}\p{M}\p{N}]")
    unspaced = _of("[" + "".join(rf"\p{{Script={part}}}" for part in UNSPACED) + "]")
    return words.astype(np.uint8) + (words & unspaced)


def code_points(text: str) -> NDArray[np.intp]:
    """Return a text's code points; those above the last letter as `_ASSIGNED`, not a letter."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.minimum(points, _ASSIGNED)
