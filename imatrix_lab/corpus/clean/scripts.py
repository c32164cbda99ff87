"""Which script a character belongs to, as arrays over code points."""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARTS = {
    "Jpan": ("Hira", "Kana", "Hani"),
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Kore": ("Hang", "Hani"),
}
"""Scripts that are several of Unicode's, or one under another name."""

UNSPACED = ("Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt")
"""Unicode scripts whose words stand without spaces."""

_ASSIGNED = 0x32400  # no letters above the third plane's ideographs


@functools.cache
def _characters() -> str:
    """Every code point as text; surrogates as spaces."""
    return "".join(chr(c) if not 0xD800 <= c < 0xE000 else " " for c in range(_ASSIGNED))


def _of(pattern: str) -> NDArray[np.bool_]:
    """Return which code points match a pattern of the regex module; all above are False."""
    import numpy as np
    import regex

    found = np.zeros(_ASSIGNED + 1, bool)
    for run in regex.finditer(f"(?:{pattern})+", _characters()):
        found[run.start() : run.end()] = True
    return found


@functools.cache
def letters_of(script: str) -> NDArray[np.uint8]:
    """Return by code point: 1 for a letter or vowel sign of another script, 2 of this one.

    Characters common to scripts (digits, punctuation, combining accents) are 0.
    """
    import numpy as np

    parts = "".join(rf"\p{{Script={part}}}" for part in PARTS.get(script, (script,)))
    any_script = _of(r"[[\p{L}\p{M}]--[\p{Script=Common}\p{Script=Inherited}]]")
    return (any_script + (any_script & _of(f"[{parts}]"))).astype(np.uint8)


@functools.cache
def word_characters() -> NDArray[np.uint8]:
    r"""Return by code point: 1 for ``\p{L}\p{M}\p{N}``, 2 where its script has no spaces.

    From `unicodedata`, whose categories are the same, and which is at hand.
    """
    import numpy as np

    found = np.zeros(_ASSIGNED + 1, np.uint8)
    for code, character in enumerate(_characters()):
        if unicodedata.category(character)[0] in "LMN":
            found[code] = 1
    found[_of("[" + "".join(rf"\p{{Script={part}}}" for part in UNSPACED) + "]") & (found > 0)] = 2
    return found


def code_points(text: str) -> NDArray[np.intp]:
    """Return a text's code points, those beyond every letter as one that is none."""
    import numpy as np

    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.minimum(points, _ASSIGNED)
