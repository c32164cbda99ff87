"""Compiled translations of Qt (.qm)."""

import struct
from collections.abc import Iterator

from imatrix_lab.errors import BadText

_MAGIC = bytes.fromhex("3cb86418caef9c95cd211cbf60a1bddd")
_MESSAGES, _TRANSLATION = 0x69, 3
_FIXED = {5: 4}  # a tag whose value has no length of its own
_TEXTS = {2, 3, 4, 6, 7, 8}
_NONE = 0xFFFFFFFF


def strings(name: str, raw: bytes) -> Iterator[str]:
    """Yield the translations."""
    if not raw.startswith(_MAGIC):
        raise BadText("this is not a Qt translation", where=name)
    try:
        at = len(_MAGIC)
        while at < len(raw):
            tag, length = struct.unpack_from(">BI", raw, at)
            at += 5
            if tag == _MESSAGES:
                yield from _translations(raw[at : at + length])
                return
            at += length
    except (struct.error, UnicodeDecodeError) as error:
        raise BadText(f"this Qt translation is damaged: {error}", where=name) from error


def _translations(messages: bytes) -> Iterator[str]:
    at = 0
    while at < len(messages):
        tag = messages[at]
        at += 1
        if tag in _FIXED:
            at += _FIXED[tag]
        elif tag in _TEXTS:
            (length,) = struct.unpack_from(">I", messages, at)
            at += 4
            if length != _NONE:
                if tag == _TRANSLATION:
                    yield messages[at : at + length].decode("utf-16-be")
                at += length
