"""Reading a GGUF file's header without trusting it.

Every count, length and offset is checked against the size of the file before anything is
allocated or skipped, so a truncated or hostile file gives one clear error. Long arrays
(vocabularies) are walked but not kept. The layout is llama.cpp's ``docs/gguf.md``.
"""

import bisect
import itertools
import math
import mmap
import re
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imatrix_lab.errors import BadModel
from imatrix_lab.llamacpp import ggml
from imatrix_lab.models import foreign

KEEP_ARRAY_MAX = 64  # arrays up to this long are kept as lists; longer ones as an `ArraySummary`

_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""Type codes of numbers, and how struct calls them."""
_UINT32, _STRING, _ARRAY = 4, 8, 9
_ALIGNMENT_MAX = 1 << 20
_PAIRS_MAX, _TENSORS_MAX = 1 << 16, 1 << 20
_KEY_BYTES_MAX = 65_535
_DIMS_MAX = 4
_TYPE_MAX = 9_999
_NEST_MAX = 4
_STRING_BYTES_MAX = 64 << 20
_WALK_MAX = 1 << 22
"""Strings and arrays inside arrays, in total: several vocabularies of a million tokens."""


@dataclass(frozen=True)
class ArraySummary:
    """An array too long to keep: its element type code, its length, and its bytes in the file."""

    element_type: int
    length: int
    span: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a GGUF file; ``offset`` is absolute, in bytes.

    ``shape`` is in ggml's order: ``shape[0]`` is the row length (columns, input channels). Of a
    type that is not known here, ``type 153``, the size is the room to the next tensor.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    size_bytes: int

    @property
    def n_elements(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """One file's header; ``types`` has each pair's type code, and an array's element type.

    ``pair_bytes`` is the size in the file of each pair of the metadata, its key included.
    """

    path: Path
    metadata: dict[str, Any]
    types: dict[str, tuple[int, ...]]
    pair_bytes: dict[str, int]
    tensors: tuple[TensorInfo, ...]

    def text(self, key: str, default: str = "") -> str:
        """Return a string value."""
        value = self.metadata.get(key, default)
        return value if isinstance(value, str) else default

    def integer(self, key: str, default: int = 0) -> int:
        """Return an integer value."""
        value = self.metadata.get(key, default)
        return value if isinstance(value, int) and not isinstance(value, bool) else default


def read_header(path: Path, keep_arrays: bool = False) -> GgufHeader:
    """Read and check the header of a GGUF file (versions 2 and 3, little-endian).

    With `keep_arrays` long arrays are lists too (a vocabulary takes about 100 bytes a token).
    Raises BadModel: not GGUF, another version, truncated, or with impossible counts, lengths,
    types or offsets. Tensor types that this llama.cpp does not know are no error.
    """
    try:
        with path.open("rb") as file:
            size_bytes = path.stat().st_size
            foreign.require_gguf(path, file.read(64))
            if size_bytes < 24:
                what = f"truncated GGUF file: only {size_bytes} bytes long"
                raise BadModel(what, where=path, fix="finish the download, or fetch it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _Parser(path, view, size_bytes, keep_arrays).header()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise BadModel("no such file", where=path, fix="check the path") from error
        raise BadModel(f"cannot be read: {error.strerror or error}", where=path) from error


_RawTensor = tuple[str, tuple[int, ...], int, int]
"""Name, shape, type code, offset from the start of the data."""


class _Parser:
    def __init__(self, path: Path, view: mmap.mmap, size_bytes: int, keep_arrays: bool):
        self.path, self.view, self.size_bytes, self.at = path, view, size_bytes, 0
        self.keep_max = sys.maxsize if keep_arrays else KEEP_ARRAY_MAX
        self.element_type = 0
        self.walk_left = _WALK_MAX

    def bad(self, what: str) -> BadModel:
        shown = "".join(c if c.isprintable() else "\ufffd" for c in what[:500])
        fix = "download or convert it again, and compare its sha256 with the publisher's"
        return BadModel(f"damaged GGUF file, at byte {self.at}: {shown}", where=self.path, fix=fix)

    def take(self, n: int, what: str) -> bytes:
        self.skip(n, what)
        return self.view[self.at - n : self.at]

    def skip(self, n: int, what: str) -> None:
        if n < 0 or n > self.size_bytes - self.at:
            raise self.bad(f"{what} needs {n} bytes, {self.size_bytes - self.at} are left")
        self.at += n

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, what: str, longest: int = _STRING_BYTES_MAX) -> str:
        length = self.number("Q", f"length of {what}")
        if length > longest:
            raise self.bad(f"{what} is {length} bytes long; at most {longest} make sense")
        return self.take(length, what).decode("utf-8", "replace")

    def name(self, what: str) -> str:
        name = self.string(what, _KEY_BYTES_MAX)
        if not name:
            raise self.bad(f"a {what} is empty")
        return name

    def header(self) -> GgufHeader:
        self.skip(8, "magic and version")  # checked
        n_tensors, n_pairs = self.number("Q", "tensor count"), self.number("Q", "pair count")
        # A pair takes at least 13 bytes, a tensor at least 32.
        fits = 13 * n_pairs + 32 * n_tensors <= self.size_bytes - self.at
        if not fits or n_pairs > _PAIRS_MAX or n_tensors > _TENSORS_MAX:
            what = f"{n_tensors} tensors and {n_pairs} metadata pairs do not fit"
            raise self.bad(f"{what} a file of {self.size_bytes} bytes")
        metadata: dict[str, Any] = {}
        types: dict[str, tuple[int, ...]] = {}
        pair_bytes: dict[str, int] = {}
        for _ in range(n_pairs):
            start = self.at
            key = self.name("metadata key")
            if key in metadata:
                raise self.bad(f"metadata key {key!r} occurs twice")
            code = self.number("I", f"type of {key}")
            metadata[key] = self.value(code, key, 0)
            types[key] = (code, self.element_type) if code == _ARRAY else (code,)
            pair_bytes[key] = self.at - start
        alignment = metadata.get("general.alignment", 32)
        if types.get("general.alignment", (_UINT32,)) != (_UINT32,):
            raise self.bad(f"general.alignment is {alignment!r}, not a 32-bit number")
        if alignment == 0 or alignment & (alignment - 1) or alignment > _ALIGNMENT_MAX:
            raise self.bad(f"general.alignment is {alignment}, not a sensible power of two")
        raw = [self.tensor() for _ in range(n_tensors)]
        tensors = tuple(self.placed(raw, alignment))
        return GgufHeader(self.path, metadata, types, pair_bytes, tensors)

    def value(self, code: int, key: str, depth: int) -> Any:
        if code in _SCALARS:
            return self.number(_SCALARS[code], key)
        if code == _STRING:
            return self.string(key)
        if code != _ARRAY or depth >= _NEST_MAX:
            raise self.bad(f"{key} has the impossible type {code}")
        element, length = self.array_head(key)
        smallest = _size_bytes(element)
        if length <= self.keep_max:
            if element in _SCALARS:
                layout = f"<{length}{_SCALARS[element]}"
                values = list(struct.unpack(layout, self.take(length * smallest, key)))
            else:
                values = [self.value(element, key, depth + 1) for _ in range(length)]
            self.element_type = element
            return values
        self.element_type = element
        start = self.at
        if element in _SCALARS:
            self.skip(length * smallest, key)
        elif element == _STRING:
            self.skip_strings(length, key)
        else:
            for _ in range(length):
                self.value(element, key, depth + 1)
        return ArraySummary(element, length, (start, self.at))

    def array_head(self, key: str) -> tuple[int, int]:
        """Return an array's element type and length, which the file can hold."""
        element, length = self.number("I", f"type of {key}"), self.number("Q", f"length of {key}")
        if element not in _SCALARS and element not in (_STRING, _ARRAY):
            raise self.bad(f"{key} is an array of the impossible type {element}")
        if length * _size_bytes(element) > self.size_bytes - self.at:
            raise self.bad(f"{key} claims {length} elements, more than the file can hold")
        if element not in _SCALARS:
            self.walk_left -= length
            if self.walk_left < 0:
                raise self.bad(f"{key} claims {length} elements, more than make sense")
        return element, length

    def skip_strings(self, length: int, key: str) -> None:
        """Walk a vocabulary: the hot loop, a quarter of a million strings."""
        at, end, view, unpack = self.at, self.size_bytes, self.view, struct.Struct("<Q").unpack_from
        for _ in range(length):
            if at + 8 > end:
                self.at = at
                raise self.bad(f"{key} ends in the middle")
            at += 8 + unpack(view, at)[0]
        if at > end:
            self.at = end
            raise self.bad(f"{key} ends in the middle")
        self.at = at

    def tensor(self) -> _RawTensor:
        name = self.name("tensor name")
        n_dims = self.number("I", f"dimensions of {name}")
        if not 1 <= n_dims <= _DIMS_MAX:
            raise self.bad(f"tensor {name!r} has {n_dims} dimensions")
        shape = tuple(self.number("Q", f"shape of {name}") for _ in range(n_dims))
        code, offset = self.number("I", f"type of {name}"), self.number("Q", f"offset of {name}")
        return name, shape, code, offset

    def placed(self, raw: list[_RawTensor], alignment: int) -> list[TensorInfo]:
        start = -(-self.at // alignment) * alignment
        starts = [*sorted(offset for *_, offset in raw), self.size_bytes - start]
        tensors, seen = [], set()
        for name, shape, code, offset in raw:
            if name in seen:
                raise self.bad(f"tensor {name!r} occurs twice")
            seen.add(name)
            room = starts[bisect.bisect_right(starts, offset, 0, len(raw))] - offset
            type_name, size_bytes = self.tensor_size(name, shape, code, room)
            if offset % alignment:
                raise self.bad(f"tensor {name!r} is off the alignment of {alignment} bytes")
            if (end := start + offset + size_bytes) > self.size_bytes:
                what = f"tensor {name!r:.200} ends at byte {end}, the file at {self.size_bytes}"
                what, fix = f"truncated GGUF file: {what}", "finish the download, or fetch it again"
                raise BadModel(what, where=self.path, fix=fix)
            tensors.append(TensorInfo(name, shape, type_name, start + offset, size_bytes))
        ordered = sorted(tensors, key=lambda t: t.offset)
        for first, second in itertools.pairwise(ordered):
            if first.offset + first.size_bytes > second.offset:
                raise self.bad(f"tensors {first.name!r} and {second.name!r} overlap")
        return tensors

    def tensor_size(
        self, name: str, shape: tuple[int, ...], code: int, room: int
    ) -> tuple[str, int]:
        """Return type name and size; rows are whole blocks. An unknown type fills its room."""
        if any(n < 1 for n in shape):
            raise self.bad(f"tensor {name!r} has the impossible shape {shape}")
        try:
            tensor_type = ggml.BY_CODE[code]
        except KeyError:
            if code > _TYPE_MAX or room <= 0:
                raise self.bad(f"tensor {name!r} has the impossible type {code}") from None
            return foreign.type_name(code), room
        if shape[0] % tensor_type.block:
            what = f"tensor {name!r} has the impossible shape {shape} for {tensor_type.name}"
            raise self.bad(what)
        n_blocks = math.prod(shape) // tensor_type.block
        return tensor_type.name, n_blocks * tensor_type.block_bytes


def _size_bytes(element: int) -> int:
    """Return the size of an array's element; for strings and arrays the smallest possible."""
    return struct.calcsize("<" + _SCALARS[element]) if element in _SCALARS else 8


def shard_paths(path: Path) -> tuple[Path, ...]:
    """Return all shards of a split model, given any of them; else the path alone."""
    match = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name)
    if not match:
        return (path,)
    total = int(match[2])
    names = [f"{match[1]}-{i:05d}-of-{total:05d}.gguf" for i in range(1, total + 1)]
    if missing := [name for name in names if not path.with_name(name).exists()]:
        more = " …" if len(missing) > 1 else ""
        what = (
            f"{len(missing)} of {total} parts of this split model are missing: {missing[0]}{more}"
        )
        fix = "fetch the missing parts into the same folder"
        raise BadModel(what, where=path.parent, fix=fix)
    return tuple(map(path.with_name, names))
