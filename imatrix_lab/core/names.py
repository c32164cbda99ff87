"""Names from outside: of files, models and texts, in any script, made safe for where they go."""

import hashlib
import re
import unicodedata
from pathlib import Path

LABEL_CHARS, LABEL_BYTES = 40, 90
"""Of a text's label, which is in file names, and in llama-quantize's strings of 127 bytes."""
MODEL_BYTES = 110
"""Of a model's: with a text's, a type and what the store adds, a file's name has at most 255."""
HALVES = re.compile("[\ud800-\udfff]+")
"""Half characters: what a byte of a name that is no UTF-8 becomes (PEP 383)."""
_SEPARATORS = frozenset(" -_.,()[]'")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029<>:\"/\\|?*]+")
"""What a disk of another system, or a terminal, does not take."""


def readable(name: str | Path) -> str:
    r"""Return a name as text: bytes that are no UTF-8, and control characters, as ``\xe9``."""
    text = str(name)
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, which JSON can spell
        text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(map(_shown, text))


def _shown(char: str) -> str:
    # joiners are spelling in several scripts, though not printable
    if char.isprintable() or char in "\u200c\u200d" or unicodedata.category(char) == "Zs":
        return char
    return char.encode("unicode_escape").decode("ascii")


def slug(name: str | Path) -> str:
    """Return the label of a text: its name's letters of every script, digits and hyphens.

    A part of the hash tells names apart of which more is lost than blanks, hyphens and the like.
    """
    text = unicodedata.normalize("NFC", readable(name))
    label = re.sub("-+", "-", "".join(c if _is_letter(c) else "-" for c in text)).strip("-")
    is_lost = not label or any(c not in _SEPARATORS and not _is_letter(c) for c in text)
    return _within(label or "text", LABEL_CHARS, LABEL_BYTES, text if is_lost else "")


def _is_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN" or char in "_\u200c\u200d"


def model_label(name: str) -> str:
    """Return a model's label: its name without what cannot be in a file's name everywhere."""
    text = unicodedata.normalize("NFC", readable(name))
    label = _UNSAFE.sub("-", text).strip(" -")
    return _within(label or "model", MODEL_BYTES, MODEL_BYTES, "" if label else text)


def _within(label: str, n_chars: int, n_bytes: int, lost: str) -> str:
    """Return a label of a limited length, with a part of its hash if it, or more, was too long."""
    if not lost and len(label) <= n_chars and len(label.encode()) <= n_bytes:
        return label
    digest = hashlib.sha256((lost or label).encode()).hexdigest()[:8]
    short = label[: n_chars - 9].encode()[: n_bytes - 9].decode("utf-8", "ignore")
    return f"{short.rstrip('-')}-{digest}"
