"""Text for terminals that are not UTF-8: what they lack is written as they can."""

import codecs
import unicodedata

ERRORS = "imatrix_lab.readable"
"""Name of the handler of errors, for streams."""
_LIKE = {"…": "...", "⋯": "...", "×": "x", "−": "-", "–": "-", "—": "-", "→": "->", "’": "'",
         "‘": "'", "“": '"', "”": '"', "·": "-", "±": "+/-", "≥": ">=", "≤": "<=", "≈": "~",
         "Δ": "delta ", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "ß": "ss"}  # fmt: skip


def _readable(error: UnicodeError) -> tuple[str, int]:
    """Replace characters by similar ones, or without their accents, or by their number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    chars = error.object[error.start : error.end]
    return "".join(_like(char, error.encoding) for char in chars), error.end


def _like(char: str, encoding: str) -> str:
    bare = unicodedata.normalize("NFKD", char)
    for text in (_LIKE.get(char, ""), "".join(c for c in bare if not unicodedata.combining(c))):
        try:
            if text.encode(encoding):
                return text
        except UnicodeEncodeError:
            pass
    return char.encode("ascii", "backslashreplace").decode()


codecs.register_error(ERRORS, _readable)
