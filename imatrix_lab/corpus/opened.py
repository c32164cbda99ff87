"""Files of the user as bytes of UTF-8, however they are packed and encoded.

What a file is, its first bytes say: gzip, zstd, bzip2 and xz are unpacked as they are read, and
UTF-16 and UTF-32 with a byte order mark become UTF-8. Anything else comes as it is.
"""

import bz2
import codecs
import gzip
import io
import lzma
import shlex
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import charset_normalizer
import pyarrow

from imatrix_lab.errors import BadText

HEAD_BYTES = 1 << 16
"""What a file is, so many bytes tell."""
_BLOCK_BYTES = 1 << 18
_SAMPLE_BYTES = 1 << 14
_LETTERS_MIN = 0.7
"""What is text has at least this share of letters and blanks."""


@dataclass(frozen=True)
class _Packing:
    """How a file is packed, and the command that unpacks it to its output."""

    name: str
    magic: bytes
    command: str
    suffix: str


_PACKINGS = (
    _Packing("gzip", b"\x1f\x8b", "zcat", ".gz"),
    _Packing("zstd", b"\x28\xb5\x2f\xfd", "zstd -dc", ".zst"),
    _Packing("bzip2", b"BZh", "bzcat", ".bz2"),
    _Packing("xz", b"\xfd7zXZ\x00", "xzcat", ".xz"),
)
_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WESTERN = {*"æøåäöüßéèêëàáâçñóôíîïúûœÆØÅÄÖÜÉÈÀÁÇÑÓÍÚ«»“”„‘’–—…•·§°€£¡¿½\xa0\xad"}
"""Letters and marks beyond ASCII that Western European text in CP1252 has."""
_ENCODINGS = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258",
    "koi8_r", "koi8_u", "cp932", "euc_jp", "gb18030", "big5", "cp949", "cp874",
)  # fmt: skip
"""Guesses worth making: what text was written in before UTF-8."""
_ICONV_NAMES = {"latin_1": "ISO-8859-1"}


class _Converted(io.RawIOBase):
    """A stream whose blocks are changed as they are read; `convert` gets b"" at the end."""

    def __init__(self, inner: Any, convert: Callable[[bytes], bytes], path: Path, what: str):
        self._inner, self._convert, self._path, self._what = inner, convert, path, what
        self._pending, self._is_at_end = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending and not self._is_at_end:
            self._pending = self._next()
        n = min(len(buffer), len(self._pending))
        buffer[:n], self._pending = self._pending[:n], self._pending[n:]
        return n

    def _next(self) -> bytes:
        try:
            block = self._inner.read(_BLOCK_BYTES)
            self._is_at_end = not block
            return self._convert(block)
        except UnicodeError as error:
            raise BadText(f"not {self._what}: {error}", where=self._path) from error
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            what = f"this {self._what} file is damaged: {error}"
            raise BadText(what, where=self._path, fix="fetch or pack it again") from error

    def close(self) -> None:
        self._inner.close()
        super().close()


def opened(path: Path) -> BinaryIO:
    """Open a file for reading as bytes of UTF-8; `BadText` if it cannot be opened or unpacked."""
    try:
        file = path.open("rb")
        start = file.read(8)
        file.seek(0)
    except OSError as error:
        what = f"this text cannot be read: {error.strerror or error}"
        raise BadText(what, where=path, fix="check the path") from error
    packing = _packing(start)
    stream: Any = file
    if packing:
        inner = _unpacked(file, packing.name)
        stream = io.BufferedReader(_Converted(inner, bytes, path, packing.name), _BLOCK_BYTES)
        start = stream.peek(8)[:8]
    encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "")
    if encoding:
        decoder = codecs.getincrementaldecoder(encoding)()

        def to_utf8(block: bytes) -> bytes:
            return decoder.decode(block, final=not block).encode()

        stream = io.BufferedReader(_Converted(stream, to_utf8, path, encoding.upper()))
    return stream  # type: ignore[no-any-return]


def _packing(start: bytes) -> _Packing | None:
    packing = next((p for p in _PACKINGS if start.startswith(p.magic)), None)
    is_word = packing and packing.suffix == ".bz2" and start[4:8] != b"1AY&"  # text may begin so
    return None if is_word else packing


def _unpacked(file: BinaryIO, name: str) -> Any:
    if name == "zstd":
        return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
    if name == "xz":
        return lzma.open(file)
    return gzip.open(file) if name == "gzip" else bz2.open(file)


def head(path: Path) -> bytes:
    """Return the first `HEAD_BYTES` of a file, unpacked and as UTF-8."""
    with opened(path) as file:
        return file.read(HEAD_BYTES)


def is_as_it_is(path: Path) -> bool:
    """Return whether a file is neither packed nor in another encoding than UTF-8."""
    with path.open("rb") as file:
        start = file.read(8)
    return _packing(start) is None and not any(start.startswith(mark) for mark, _ in _MARKS)


def suffix(path: Path) -> str:
    """Return a file's suffix in lower case, without that of its packing."""
    packed = path.suffix.lower() in {packing.suffix for packing in _PACKINGS}
    return Path(path.stem).suffix.lower() if packed else path.suffix.lower()


def not_utf8(path: Path, byte: int, line: int) -> BadText:
    """Return the error for a file whose byte `byte`, in line `line`, is not UTF-8."""
    with opened(path) as file:
        file.read(max(0, byte - _SAMPLE_BYTES))
        encoding = _guess(file.read(2 * _SAMPLE_BYTES))
    what = f"not UTF-8 at byte {byte} (line {line}); it may be {encoding}"
    return BadText(what, where=path, fix=_iconv(path, encoding))


def require_text(path: Path, start: bytes) -> None:
    """Raise `BadText` for the first bytes of something that is no text."""
    if inner := _packing(start[:8]):
        fix = f"{piped(path, inner.command)} > {copy_name(path, 'text')}"
        raise BadText("this file is packed twice", where=path, fix=fix)
    for magic, name, fix in _NO_TEXT:
        if magic in (start[257:262] if name == "a tar archive" else start[: len(magic)]):
            quoted = shlex.quote(str(path))
            out = copy_name(path.with_suffix(".txt"), "text")
            raise BadText(f"this is {name}, not text", where=path, fix=fix.format(quoted, out))
    if start.count(0) > len(start) // 100:
        encoding = max(("UTF-16LE", "UTF-16BE"), key=lambda name: _letters(start, name))
        if _letters(start, encoding) > _LETTERS_MIN:
            what = f"this is {encoding} without a byte order mark"
            raise BadText(what, where=path, fix=_iconv(path, encoding))
        raise BadText("this is not text: it has zero bytes", where=path, fix="check the file")


def _letters(sample: bytes, encoding: str) -> float:
    """Return the share of letters and blanks, of scripts that have no 20,000, in an encoding."""
    text = sample.decode(encoding, "replace")
    usual = sum(c.isspace() or (c.isalpha() and not "\u3400" <= c <= "\ud7a3") for c in text)
    return usual / max(1, len(text))


_NO_TEXT = (
    (b"%PDF", "a PDF", "pdftotext {} {}"),
    (b"PK\x03\x04", "a zip archive (or a document in one)", "pandoc {} -t plain -o {}, or unzip"),
    (b"ustar", "a tar archive", "tar -xf {}"),
    (b"GGUF", "a GGUF file", "--model takes models, --imatrix importance matrices"),
    (b"ARROW1", "an Arrow file", "save it as Parquet"),
    (b"version https://git-lfs", "only a pointer of Git LFS", "git lfs pull"),
)


def _guess(sample: bytes) -> str:
    """Return the encoding that bytes probably have, as iconv calls it."""
    western = {*sample.decode("cp1252", "replace")} - {*map(chr, range(128))}
    n_high = sum(byte > 127 for byte in sample)
    if western <= _WESTERN and n_high < len(sample) / 3:  # where the library says cp1250
        return "CP1252"
    best = charset_normalizer.from_bytes(sample, cp_isolation=list(_ENCODINGS)).best()
    name = best.encoding if best else "latin_1"
    return _ICONV_NAMES.get(name, name.replace("_", "-").upper())


def _iconv(path: Path, encoding: str) -> str:
    """Return the command that writes a copy in UTF-8."""
    return f"{piped(path, f'iconv -f {encoding} -t UTF-8')} -o {copy_name(path, 'utf8')}"


def piped(path: Path, command: str) -> str:
    """Return a command on a file as the shell takes it, on what is in it if it is packed."""
    with path.open("rb") as file:
        packing = _packing(file.read(8))
    name = shlex.quote(str(path))
    return f"{packing.command} {name} | {command}" if packing else f"{command} {name}"


def copy_name(path: Path, word: str) -> str:
    """Return a name for an unpacked copy, quoted for the shell: ``text.utf8.txt``."""
    is_packed = path.suffix.lower() in {packing.suffix for packing in _PACKINGS}
    base = path.with_suffix("") if is_packed else path
    return shlex.quote(str(base.with_name(f"{base.stem}.{word}{base.suffix}")))
