"""Importance matrices in memory, and llama.cpp's two file formats.

GGUF has ``<tensor>.in_sum2`` and ``<tensor>.counts``, raw sums that add; `dat` is the other.
Both are written byte for byte as llama-imatrix writes them. Where a GGUF has metadata of ours, the
last of it is a checksum: the CRC-32 of the whole file with zeros in its place.
"""

from __future__ import annotations

import functools
import math
import re
import shlex
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.files import replacing
from imatrix_lab.core.outputs import Other, Rules, any_file, replacing_equal
from imatrix_lab.corpus.mixture import is_language
from imatrix_lab.errors import BadImatrix, BadModel
from imatrix_lab.imatrix import dat
from imatrix_lab.models.foreign import MAGIC
from imatrix_lab.models.gguf import GgufHeader, TensorInfo, read_header

LEGACY_WINDOW = 512
"""Assumed window length of a ``.dat``, which does not record it; llama.cpp assumes its own ``-c``,
512 by default. Only the weight of such a file in a merge by tokens depends on it."""
OURS = "imatrix_lab."
LANGUAGE, LABEL = OURS + "language", OURS + "label"
"""Of the text: a language or a mixture of some; or what another text is called, for names."""
MODEL, REPAIRED, WINDOWS = OURS + "model.sha256", OURS + "repair", OURS + "windows"
LICENCE, CORPUS, TEXTS = (OURS + f"corpus.{x}" for x in ("licence", "sha256", "text_sha256"))
"""Of what was read; the last of a user's files, several with a blank between them."""
CRC32 = OURS + "crc32"

SQUARES, COUNTS = ".in_sum2", ".counts"
_DATASETS = "imatrix.datasets"
_SIZES = _N_CHUNKS, _CHUNK = "imatrix.chunk_count", "imatrix.chunk_size"
_ALIGNMENT = 32
_PIECE = 1 << 22  # values of a tensor that are copied at a time
_NO_CRC32 = "0" * 8
_SETTLED_S = 2.0  # a file may be written to twice at what its disk takes for one time
_whole = set[tuple[int, ...]]()  # states of files whose checksum was right
_HEAD_BYTES = 24  # magic, version, numbers of tensors and pairs
_U32_MAX, _I32_MAX = 2**32 - 1, 2**31 - 1
_F32, _UINT32, _STRING, _ARRAY = 0, 4, 8, 9
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Entry:
    """Sums of squared activations (matrices, columns) and counts of tokens (matrices,); float32.

    Matrices without experts (MLA), and everything from a ``.dat``, are one row with one count.
    """

    sums: NDArray[Any]
    counts: NDArray[Any]

    def split(self, n_matrices: int) -> Entry:
        """Return the entry with one row a matrix (llama.cpp's broadcast).

        A row that equals its count everywhere saw no token: a ``.dat`` has exact ones there.
        """
        if self.counts.size != 1 or n_matrices == 1 or self.sums.size % n_matrices:
            return self
        sums, counts = self.sums.reshape(n_matrices, -1), self.counts.repeat(n_matrices)
        filled = (sums == counts[:, None]).all(axis=1)
        return Entry(sums * ~filled[:, None], counts * ~filled)

    def whole(self) -> Entry:
        """Return the same means with whole counts, at least 1 where any token was counted.

        llama.cpp rounds the counts it reads and not the sums (``common_imatrix_load``).
        """
        counts = rounded(self.counts)
        counts[(counts == 0) & (self.counts > 0)] = 1
        if np.array_equal(counts, self.counts):
            return self
        return Entry((self.means() * counts[:, None]).astype(np.float32), counts)

    def means(self) -> NDArray[np.float64]:
        """Return mean squared activations, shape (matrices, columns); 0 without tokens."""
        counts = self.counts.astype(np.float64)[:, None]
        means = np.zeros(self.sums.shape)
        np.divide(self.sums, counts, out=means, where=counts > 0)
        return means


def rounded(counts: NDArray[Any]) -> NDArray[Any]:
    """Return counts as llama.cpp reads them: rounded, halves away from zero (``lround``)."""
    return np.asarray(np.trunc(counts + np.copysign(np.float32(0.5), counts)))


@dataclass(frozen=True)
class Tensor:
    """A float32 tensor to write: numpy's shape, and what gives its values, in order."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], Iterable[NDArray[Any]]]

    @classmethod
    def of(cls, name: str, values: NDArray[Any]) -> Tensor:
        """Return a tensor of values in memory."""
        return cls(name, values.shape, lambda: (values,))

    def size_bytes(self) -> int:
        """Return its size in a file."""
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix; ``language`` and ``metadata`` as this project writes them, or empty.

    `language` is one of ours, or a mixture of some: see `mixture.is_language`.

    A ``legacy`` one is from a ``.dat``; a ``complete`` one has the keys llama-quantize requires.
    `more`: other float32 tensors of a GGUF file, read when they are written (see `moments`).
    """

    entries: dict[str, Entry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    language: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    legacy: bool = False
    complete: bool = True
    more: Sequence[Tensor] = ()

    @property
    def label(self) -> str:
        """The language, or else what the text is called; "" if that is not recorded."""
        return self.language or self.metadata.get(LABEL, "")

    @property
    def by_document(self) -> bool:
        """Whether no window straddles two documents: then `chunk_size` is the longest possible."""
        return self.metadata.get(WINDOWS) == "document"

    def windows(self) -> str:
        """Return how many windows of how many tokens, in words."""
        about = "about " if self.legacy else "up to " if self.by_document else ""
        return f"{self.chunk_count} windows of {about}{self.chunk_size}"

    def n_tokens(self) -> int:
        """Return how many tokens most dense tensors have seen (some models loop over layers)."""
        dense = Counter(float(e.counts[0]) for e in self.entries.values() if e.counts.size == 1)
        n_tokens = dense.most_common(1)[0][0] if dense else 0.0
        return round(n_tokens) if np.isfinite(n_tokens) else 0


def layer_and_role(tensor: str) -> tuple[int | None, str]:
    """Return (7, "attn_q") for ``blk.7.attn_q.weight``; the layer is None outside of layers."""
    match = _BLOCK.fullmatch(tensor)
    name = match[2] if match else tensor
    return (int(match[1]) if match else None), name.removesuffix(".weight")


def read(path: Path) -> Imatrix:
    """Read an importance matrix, GGUF or legacy ``.dat``, whatever its name."""
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == MAGIC
        return _read_gguf(path) if is_gguf else _from_dat(dat.read(path))
    except FileNotFoundError as error:
        raise BadImatrix("no such file", where=path, fix="check the path") from error
    except OSError as error:
        raise BadImatrix(f"cannot be read: {error.strerror or error}", where=path) from error
    except BadModel as error:
        raise BadImatrix(error.what, where=path, fix=error.fix) from error


def checked_header(path: Path) -> GgufHeader:
    """Return the header of a GGUF file; raises BadImatrix if it has a checksum that is wrong.

    A large file is read whole for that, once in a process.
    """
    header, stat = read_header(path), path.stat()
    state = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    if CRC32 not in header.metadata or state in _whole:
        return header
    if header.text(CRC32) != _crc32(header):
        what = "this file has changed since it was written: its checksum is another"
        without = f"gguf-new-metadata --remove-metadata {CRC32} {shlex.quote(str(path))} NEW.gguf"
        fix = f"make or fetch it again; if you changed its metadata yourself: {without}"
        raise BadImatrix(what, where=path, fix=fix)
    if time.time() - stat.st_mtime > _SETTLED_S:
        _whole.add(state)
    return header


def _crc32(header: GgufHeader) -> str:
    """Return the checksum of a file that has one."""
    at = _HEAD_BYTES - len(_NO_CRC32)  # where it begins, at the end of its pair
    for key, size_bytes in header.pair_bytes.items():
        at += size_bytes
        if key == CRC32:
            break
    with header.path.open("rb") as file:
        crc32 = zlib.crc32(_NO_CRC32.encode(), zlib.crc32(file.read(at)))
        file.seek(at + len(_NO_CRC32))
        while piece := file.read(_PIECE):
            crc32 = zlib.crc32(piece, crc32)
    return f"{crc32:08x}"


def _read_gguf(path: Path) -> Imatrix:
    header = checked_header(path)
    if header.text("general.type") != "imatrix":
        raise _other_gguf(header)
    tensors = {t.name: t for t in header.tensors}
    entries = {}
    for name in tensors:
        base = name.removesuffix(SQUARES).removesuffix(COUNTS)
        if base == name or base in entries:
            continue
        sums, counts = tensors.get(base + SQUARES), tensors.get(base + COUNTS)
        if sums is None or counts is None:
            missing = "sums" if sums is None else "counts"
            raise BadImatrix(f"{base} has no {missing}", where=path)
        if sums.type_name != "F32" or counts.type_name != "F32":
            raise BadImatrix(f"{base} is not float32", where=path)
        n_matrices = counts.n_elements
        if sums.n_elements % n_matrices:
            raise BadImatrix(f"{base}: {sums.n_elements} sums for {n_matrices} counts", where=path)
        entries[base] = Entry(_floats(path, sums).reshape(n_matrices, -1), _floats(path, counts))
    if not entries:
        raise BadImatrix("this importance matrix has no tensors", where=path)
    n_chunks, window = (
        header.integer(k, -1) if header.types.get(k) == (_UINT32,) else -1 for k in _SIZES
    )
    ours = {k: v for k, v in header.metadata.items() if k.startswith(OURS) and isinstance(v, str)}
    ours.pop(CRC32, None)
    complete = _DATASETS in header.metadata and min(n_chunks, window) >= 0
    if LANGUAGE in ours and not is_language(ours[LANGUAGE]):  # of an earlier version
        ours[LABEL] = ours.pop(LANGUAGE)
    sizes, language = (max(0, n_chunks), max(0, window)), ours.get(LANGUAGE, "")
    more = [
        Tensor(name, info.shape[::-1], functools.partial(_pieces, path, info))
        for name, info in tensors.items()
        if info.type_name == "F32" and not name.endswith((SQUARES, COUNTS))
    ]
    return Imatrix(entries, _datasets(header), *sizes, language, ours, complete=complete, more=more)


def _other_gguf(header: GgufHeader) -> BadImatrix:
    what = "this GGUF file is not an importance matrix"
    if not header.text("general.architecture"):
        return BadImatrix(what, where=header.path)
    fix = f"imatrix-lab imatrix build --model {shlex.quote(str(header.path))} --corpus LANGUAGE"
    return BadImatrix(f"{what} but a model", where=header.path, fix=fix)


def _datasets(header: GgufHeader) -> tuple[str, ...]:
    datasets: Any = header.metadata.get(_DATASETS)
    if header.types.get(_DATASETS) != (_ARRAY, _STRING):
        return ()
    if isinstance(datasets, list):
        return tuple(datasets)
    names, (at, end) = [], datasets.span  # the header's reader skips long arrays
    with header.path.open("rb") as file:
        file.seek(at)
        while file.tell() < end:
            (length,) = struct.unpack("<Q", file.read(8))
            names.append(file.read(length).decode("utf-8", "replace"))
    return tuple(names)


def _floats(path: Path, info: TensorInfo) -> NDArray[Any]:
    values = np.fromfile(path, np.float32, info.n_elements, offset=info.offset)
    if values.size != info.n_elements:
        raise BadImatrix(f"{info.name} is cut off", where=path)
    return values


def _pieces(path: Path, info: TensorInfo) -> Iterator[NDArray[Any]]:
    for at in range(0, info.n_elements, _PIECE):
        n = min(_PIECE, info.n_elements - at)
        yield np.fromfile(path, np.float32, n, offset=info.offset + 4 * at)


def _from_dat(file: dat.DatFile) -> Imatrix:
    """Return raw sums and counts as llama.cpp restores them (``load_imatrix``)."""
    window = np.float32(LEGACY_WINDOW)
    entries = {}
    for entry in file.entries:
        with np.errstate(over="ignore", invalid="ignore"):  # `validate` reports these
            sums = entry.values * window
        counts = np.array([entry.n_calls], np.float32) * window
        entries[entry.name] = Entry(sums.reshape(1, -1), counts)
    n_chunks = file.n_calls or max(e.n_calls for e in file.entries)
    datasets = (file.dataset,) if file.dataset else ()
    return Imatrix(entries, datasets, n_chunks, LEGACY_WINDOW, legacy=True)


def other_than(same: Mapping[str, Any], key: str = MODEL) -> Other:
    """Return what tells an imatrix of this project with `key`, and `same` in its metadata."""

    def other(path: Path) -> str:
        try:
            header = read_header(path)
        except BadModel:
            return any_file(path)
        metadata = header.metadata
        if header.text("general.type") != "imatrix" or (key and key not in metadata):
            return any_file(path)
        named = header.text(LANGUAGE) or header.text(LABEL)
        of = f"an imatrix of {named or 'some text'}"
        if differing := [name for name, value in same.items() if metadata.get(name) != value]:
            return f"{of} that differs in {', '.join(n.removeprefix(OURS) for n in differing)}"
        return ""

    return other


def named(label: str) -> dict[str, str]:
    """Return the metadata that name a text: as a language only if it is one."""
    return {LANGUAGE if is_language(label) else LABEL: label}


def unnamed(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata without what names a text."""
    return {key: value for key, value in metadata.items() if key not in (LANGUAGE, LABEL)}


def write(
    path: Path,
    imatrix: Imatrix,
    metadata: Mapping[str, str] | None = None,
    rules: Rules | None = None,
) -> None:
    """Write an importance matrix, whole or not at all; as a ``.dat`` if the name ends so.

    `metadata` is added to a GGUF file's own. With `rules`, no other file is replaced. Raises
    BadImatrix for counts no ``.dat`` can hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = replacing_equal(path, rules) if rules else replacing(path)
    with place as temporary, temporary.open("wb") as file:
        if path.suffix == ".dat":
            last, n_calls = "".join(imatrix.datasets[-1:]), min(imatrix.chunk_count, _I32_MAX)
            dat.write(file, list(_dat_entries(imatrix)), n_calls, last)
        else:
            _write_gguf(file, imatrix, {**imatrix.metadata, **(metadata or {})})


def _write_gguf(file: IO[bytes], imatrix: Imatrix, metadata: Mapping[str, str]) -> None:
    """Write the layout of llama.cpp's ``gguf_write_to_file`` (docs/gguf.md, version 3)."""
    tensors = list[Tensor]()
    for name, entry in sorted(imatrix.entries.items()):
        tensors.append(Tensor.of(name + SQUARES, entry.sums))
        tensors.append(Tensor.of(name + COUNTS, entry.counts.reshape(-1, 1)))
    tensors += imatrix.more
    datasets = b"".join(_string(d) for d in imatrix.datasets)
    pairs = [
        _pair("general.type", _STRING) + _string("imatrix"),
        _pair(_DATASETS, _ARRAY) + struct.pack("<IQ", _STRING, len(imatrix.datasets)) + datasets,
        _pair(_N_CHUNKS, _UINT32) + struct.pack("<I", min(imatrix.chunk_count, _U32_MAX)),
        _pair(_CHUNK, _UINT32) + struct.pack("<I", min(imatrix.chunk_size, _U32_MAX)),
    ]
    texts = {**metadata, CRC32: _NO_CRC32} if metadata else {}
    pairs += [_pair(key, _STRING) + _string(value) for key, value in texts.items()]
    head = MAGIC + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs)
    at, offset = len(head) - len(_NO_CRC32), 0
    for tensor in tensors:
        # ggml's order, columns first; dimensions of 1 at the end are not written
        shape = tensor.shape[:0:-1] if tensor.shape[0] == 1 else tensor.shape[::-1]
        shape = shape or (1,)
        head += _string(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", _F32, offset)
        offset += tensor.size_bytes() + -tensor.size_bytes() % _ALIGNMENT
    crc32 = 0
    for piece in _pieces_of_file(head, tensors):
        file.write(piece)
        crc32 = zlib.crc32(piece, crc32)
    if metadata:
        file.seek(at)
        file.write(f"{crc32:08x}".encode())


def _pieces_of_file(head: bytes, tensors: Sequence[Tensor]) -> Iterator[bytes]:
    yield head + bytes(-len(head) % _ALIGNMENT)
    for tensor in tensors:
        for values in tensor.values():
            yield values.astype("<f4").tobytes()
        yield bytes(-tensor.size_bytes() % _ALIGNMENT)


def _pair(key: str, value_type: int) -> bytes:
    return _string(key) + struct.pack("<I", value_type)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _dat_entries(imatrix: Imatrix) -> Iterator[dat.DatEntry]:
    """Yield entries as llama.cpp's ``save_imatrix_legacy`` computes them, in float32.

    The columns of a matrix that no token reached become 1, as llama-quantize would take them;
    a tensor that no token reached at all is skipped.
    """
    window = imatrix.chunk_size or LEGACY_WINDOW
    for name, entry in sorted(imatrix.entries.items()):
        counts = rounded(entry.counts)[:, None]
        if not (np.abs(counts) <= _I32_MAX).all():
            raise BadImatrix(f"{name} has a count that does not fit a .dat (int32)")
        if not (counts > 0).any():
            continue
        n_calls = -(-int(counts.max()) // window)
        hit, one = counts > 0, np.float32(1)
        means = np.where(hit, entry.sums, one) / np.where(hit, counts, one)
        values = (means * np.float32(n_calls)).astype(np.float32)
        yield dat.DatEntry(name, n_calls, values.reshape(-1))
