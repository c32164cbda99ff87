"""The legacy ``.dat`` importance matrix, which ik_llama.cpp reads and older llama.cpp wrote.

All numbers are little-endian; ``str`` is an int32 length and that many bytes:

    int32 entries; for each: str name, int32 calls, int32 values, float32[values]
    int32 calls, str dataset                                    (older files end before this)

An entry's values are (sum / count) * calls, with the sum of squares and the count of tokens of
its column, and ``calls`` the number of windows (llama.cpp's ``save_imatrix_legacy``). So means
are kept, but neither token counts nor the number of experts nor the length of a window. The
format has no magic number: a file that does not fit to the last byte is refused.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.errors import BadImatrix

_NAME_BYTES_MAX = 4096
_DATASET_BYTES_MAX = 65_536
_ENTRY_BYTES_MIN = 17


@dataclass(frozen=True)
class DatEntry:
    """One entry as the file has it: values, shape (matrices * columns,), times `n_calls`."""

    name: str
    n_calls: int
    values: NDArray[np.float32]


@dataclass(frozen=True)
class DatFile:
    """A whole file; ``n_calls`` is 0 in older files, which lack it."""

    entries: tuple[DatEntry, ...]
    n_calls: int
    dataset: str


def read(path: Path) -> DatFile:
    """Read a ``.dat``; raises BadImatrix where its bytes or numbers do not fit the format."""
    with path.open("rb") as file:
        return _Reader(path, file, path.stat().st_size).whole()


class _Reader:
    def __init__(self, path: Path, file: IO[bytes], size_bytes: int):
        self.path, self.file, self.left = path, file, size_bytes

    def bad(self, what: str) -> BadImatrix:
        what = f"not an importance matrix (neither GGUF nor .dat), or a damaged one: {what}"
        return BadImatrix(what, where=self.path, fix="download or compute it again")

    def take(self, n: int, what: str) -> bytes:
        if not 0 <= n <= self.left:
            raise self.bad(f"{what} needs {n} bytes, {self.left} are left")
        self.left -= n
        if len(raw := self.file.read(n)) != n:
            raise self.bad(f"{what} is cut off")
        return raw

    def number(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    def string(self, what: str, longest: int) -> bytes:
        length = self.number(f"length of {what}")
        if length > longest:
            raise self.bad(f"{what} is {length} bytes long, more than {longest}")
        return self.take(length, what)

    def whole(self) -> DatFile:
        n_entries = self.number("number of entries")
        if n_entries < 1 or n_entries * _ENTRY_BYTES_MIN > self.left:
            raise self.bad(f"{n_entries} entries in {self.left} bytes")
        entries: dict[str, DatEntry] = {}
        for i in range(n_entries):
            entry = self.entry(i)
            if entry.name in entries:
                raise self.bad(f"{entry.name} occurs twice")
            entries[entry.name] = entry
        n_calls, dataset = 0, b""
        if self.left:
            n_calls = self.number("number of windows")
            dataset = self.string("dataset", _DATASET_BYTES_MAX)
        if n_calls < 0 or self.left:
            raise self.bad(f"{n_calls} windows, and {self.left} bytes after the end")
        return DatFile(tuple(entries.values()), n_calls, dataset.decode("utf-8", "replace"))

    def entry(self, i: int) -> DatEntry:
        raw = self.string(f"name of entry {i}", _NAME_BYTES_MAX)
        name = raw.decode("utf-8", "ignore")
        if not name.isprintable() or not name or name.encode() != raw:
            raise self.bad(f"entry {i} has no readable name")
        n_calls, n_values = self.number(f"calls of {name}"), self.number(f"values of {name}")
        if n_calls < 1 or n_values < 1:
            raise self.bad(f"{name} has {n_values} values from {n_calls} windows")
        values = np.frombuffer(self.take(4 * n_values, name), "<f4")
        return DatEntry(name, n_calls, values)


def write(file: IO[bytes], entries: Sequence[DatEntry], n_calls: int, dataset: str) -> None:
    """Write what `read` reads, in the order given."""
    file.write(struct.pack("<i", len(entries)))
    for entry in entries:
        file.write(_string(entry.name) + struct.pack("<ii", entry.n_calls, entry.values.size))
        file.write(entry.values.astype("<f4").tobytes())
    file.write(struct.pack("<i", n_calls) + _string(dataset))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<i", len(raw)) + raw
