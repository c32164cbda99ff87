"""Chromium's resource packs, version 5 (.pak): the strings of one language by number."""

import struct
from collections.abc import Iterator
from itertools import pairwise

from imatrix_lab.corpus.documents import decode
from imatrix_lab.errors import BadText

_HEADER = struct.Struct("<IB3xHH")
_ENTRY = struct.Struct("<HI")
_VERSION, _UTF8 = 5, 1
_GZIP = b"\x1f\x8b"
"""Beside strings there are a few compressed resources."""


def strings(name: str, raw: bytes) -> Iterator[str]:
    """Yield the strings of a pack."""
    try:
        version, encoding, n_entries, _ = _HEADER.unpack_from(raw)
        if version != _VERSION or encoding != _UTF8:
            raise BadText(f"a pack of version {version}, encoding {encoding}", where=name)
        starts = [
            _ENTRY.unpack_from(raw, _HEADER.size + i * _ENTRY.size)[1] for i in range(n_entries + 1)
        ]
    except struct.error as error:
        raise BadText("this pack is truncated", where=name) from error
    for start, end in pairwise(starts):
        if not start <= end <= len(raw):
            raise BadText("this pack is damaged: a string lies outside it", where=name)
        if not raw.startswith(_GZIP, start, end):
            yield decode(raw[start:end], name)
