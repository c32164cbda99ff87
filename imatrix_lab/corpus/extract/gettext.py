"""Compiled catalogues of gettext (.mo): the translations."""

import struct
from collections.abc import Iterator

from imatrix_lab.corpus.documents import decode
from imatrix_lab.errors import BadText

_MAGIC = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}


def strings(name: str, raw: bytes) -> Iterator[str]:
    """Yield the translations."""
    order = _MAGIC.get(raw[:4])
    if order is None:
        raise BadText("this is not a gettext catalogue", where=name)
    try:
        n_strings, originals, translations = struct.unpack_from(f"{order}III", raw, 8)
        for i in range(n_strings):
            length, start = struct.unpack_from(f"{order}II", raw, translations + 8 * i)
            original_length = struct.unpack_from(f"{order}I", raw, originals + 8 * i)[0]
            if start + length > len(raw):
                raise BadText("this catalogue is truncated", where=name)
            if original_length:  # the translation of the empty string is the header
                yield from decode(raw[start : start + length], name).split("\0")
    except struct.error as error:
        raise BadText("this catalogue is truncated", where=name) from error
