"""Reading files out of a Debian package: an ``ar`` archive with a compressed tar in it.

Nothing is written: only the files that are named are read, and their sizes are bounded, so a
hostile package has no path to leave by and no bomb to set off.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from imatrix_lab.errors import BadText

FILE_BYTES_MAX = 64 << 20
ALL_BYTES_MAX = 1 << 30
_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60


def members(package: Path, patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the regular files that fit a pattern, in the package's order.

    Names have no ``./`` before them; what ends in ``.gz`` is unpacked.

    Raises
    ------
    BadText : no Debian package, a damaged one, or files that are too large.
    """
    total = 0
    try:
        with package.open("rb") as file, _data(file, package) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if not member.isfile() or not any(fnmatchcase(name, p) for p in patterns):
                    continue
                total += member.size
                content = archive.extractfile(member)
                if member.size > FILE_BYTES_MAX or total > ALL_BYTES_MAX or content is None:
                    raise BadText(f"{name} is too large", where=package)
                raw = content.read()
                if name.endswith(".gz"):
                    raw = _gunzipped(raw, name, package)
                yield name.removesuffix(".gz"), raw
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise BadText(f"this Debian package is damaged: {error}", where=package) from error


def _data(file: IO[bytes], package: Path) -> tarfile.TarFile:
    """Return the tar of a package's files, to be read once from its beginning."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise BadText("this is no Debian package", where=package)
    while header := file.read(_HEADER_BYTES):
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        digits = header[48:58].strip()
        if not digits.isdigit():
            raise BadText("this Debian package is damaged", where=package)
        size_bytes = int(digits)
        if name.startswith("data.tar"):
            part = _Part(file, size_bytes)
            return tarfile.open(fileobj=_unpacked(part, name, package), mode="r|")
        file.seek(size_bytes + size_bytes % 2, 1)
    raise BadText("this Debian package has no data", where=package)


class _Part(io.RawIOBase):
    """The next so many bytes of a file: what follows is not for the unpacker."""

    def __init__(self, file: IO[bytes], size_bytes: int):
        self._file, self._left = file, size_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(min(len(buffer), self._left))
        buffer[: len(block)] = block
        self._left -= len(block)
        return len(block)


def _unpacked(part: _Part, name: str, package: Path) -> Any:
    file = io.BufferedReader(part)
    kind = name.removeprefix("data.tar").removeprefix(".")
    if kind == "":
        return file
    if kind == "xz":
        return lzma.open(file)
    if kind == "gz":
        return gzip.open(file)
    if kind == "bz2":
        return bz2.open(file)
    if kind == "zst":
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
    raise BadText(f"this Debian package is packed in a way not known here: {name}", where=package)


def _gunzipped(raw: bytes, name: str, package: Path) -> bytes:
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    text = unpacker.decompress(raw, FILE_BYTES_MAX)
    if unpacker.unconsumed_tail:
        raise BadText(f"{name} unpacks to more than {FILE_BYTES_MAX >> 20} MiB", where=package)
    return text
