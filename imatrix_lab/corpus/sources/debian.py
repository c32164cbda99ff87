"""Text inside a Debian package, fetched with apt and read without installing it.

A ``.deb`` is an ``ar`` archive whose member ``data.tar.*`` holds the files. It is streamed: only
the files that fit are read, and their sizes are bounded.
"""

import bz2
import contextlib
import gzip
import io
import itertools
import lzma
import re
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import pyarrow

from imatrix_lab.core import process
from imatrix_lab.core.files import need_room, sha256_file
from imatrix_lab.core.format import size
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.corpus.extract import extract
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.corpus.sources.base import Pinned
from imatrix_lab.errors import BadText, FetchFailed, MissingTool, ToolFailed
from imatrix_lab.types import Document

FILE_BYTES_MAX = 64 << 20
ALL_BYTES_MAX = 1 << 30
UPDATE_TIMEOUT_S = 300
LISTS_AGE_MAX_S = 7 * 86400
DOWNLOAD_TIMEOUT_S = 3600

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
_UNPACKERS: dict[str, Callable[[Any], Any]] = {
    "": lambda file: file,
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": lambda file: pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd"),
}
_SHORT = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=10"]


def reach(source: Source, session: Session) -> Pinned:
    """Ask apt for the package's version, by the system's lists or our own, which need no root."""
    name = str(source.settings["package"])
    facts = _show(name, [])
    if not facts:
        lists = session.store.root / "apt"
        if not session.store.read_only:
            with session.store.lock("apt", session.progress):
                _refresh(lists, session.progress)
        facts = _show(name, _with(lists)) if lists.exists() else {}
    if not facts:
        fix = "sudo apt-get update; a distribution other than Debian may lack this package"
        raise FetchFailed(f"apt knows no package {name}", fix=fix)
    return Pinned(source, facts["Version"], facts["SHA256"])


def documents(pinned: Pinned, language: Language, session: Session) -> Iterator[Document]:
    """Yield what the extractor reads from the files named, which may be patterns."""
    source = pinned.source
    files = members(_package(pinned, session), source.settings["files"])
    first = next(files, None)
    if first is None:
        raise BadText(f"{source.origin} {pinned.version} has no {source.settings['files'][0]}")
    yield from extract(source, itertools.chain([first], files))


def _package(pinned: Pinned, session: Session) -> Path:
    name = str(pinned.source.settings["package"])

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        lists = [] if _show(name, []) else _with(session.store.root / "apt")
        size_bytes = int(_show(name, lists).get("Size", 0))
        need_room(out, size_bytes, f"{name} {pinned.version}")
        session.progress.say(f"fetching {name} {pinned.version}, {size(size_bytes)}")
        argv = ["apt-get", *lists, *_SHORT, "download", f"{name}={pinned.version}"]
        try:
            process.run(argv, cwd=scratch, log=scratch / "apt.log", timeout_s=DOWNLOAD_TIMEOUT_S)
        except ToolFailed as error:
            raise FetchFailed(
                f"apt could not download {name} {pinned.version}: {error.what}",
                where=error.where,
                fix="sudo apt-get update, then again; --renew if Debian has replaced it",
            ) from error
        for path in sorted(scratch.glob("*.deb")):
            if sha256_file(path) == pinned.sha256:
                path.replace(out / f"{name}.deb")
                return {}
        raise FetchFailed(f"{name} does not have the sha256 in apt's lists", where=scratch)

    inputs = {"debian": name, "version": pinned.version, "sha256": pinned.sha256}
    return (
        session.store.own.get("fetched", name, inputs, build, session.progress).path / f"{name}.deb"
    )


def _show(name: str, lists: Sequence[str]) -> dict[str, str]:
    """Return apt's facts about a package; empty if it knows none of that name."""
    argv = ["apt-cache", *lists, "show", "--no-all-versions", name]
    try:
        done = process.run(argv, check=False, timeout_s=60)
    except MissingTool as error:
        what = "apt is missing: Debian packages need Debian, Ubuntu or a relative"
        raise MissingTool(what, fix="choose another source: --source NAME") from error
    fields = dict(re.findall(r"^(Version|SHA256|Size): (\S+)$", done.tail, re.MULTILINE))
    return fields if {"Version", "SHA256"} <= fields.keys() else {}


def _with(folder: Path) -> list[str]:
    paths = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache::archives": folder / "archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
    }
    return [word for key, value in paths.items() for word in ("-o", f"{key}={value}")]


def _refresh(folder: Path, progress: Progress) -> None:
    if not folder.exists():
        progress.say("apt does not know this package: fetching lists of packages into the store")
        _update(folder)
    elif time.time() - folder.stat().st_mtime > LISTS_AGE_MAX_S:
        with contextlib.suppress(FetchFailed):
            _update(folder)


def _update(folder: Path) -> None:
    temporary = folder.with_name("apt.part")
    shutil.rmtree(temporary, ignore_errors=True)
    for name in ("lists/partial", "archives/partial"):
        (temporary / name).mkdir(parents=True)
    argv = ["apt-get", *_with(temporary), *_SHORT, "update", "--error-on=any"]
    try:
        process.run(argv, log=temporary / "update.log", timeout_s=UPDATE_TIMEOUT_S)
    except ToolFailed as error:
        what = f"apt's lists of packages cannot be fetched: {error.what}"
        raise FetchFailed(what, where=error.where, fix="sudo apt-get update") from error
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def members(package: Path, patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files that fit a pattern, in order; ``.gz`` are unpacked."""
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
                    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
                    raw = unpacker.decompress(raw, FILE_BYTES_MAX)
                    if unpacker.unconsumed_tail:
                        what = f"{name} unpacks to more than {FILE_BYTES_MAX >> 20} MiB"
                        raise BadText(what, where=package)
                yield name.removesuffix(".gz"), raw
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise BadText(f"this Debian package is damaged: {error}", where=package) from error


def _data(file: IO[bytes], package: Path) -> tarfile.TarFile:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise BadText("this is not a Debian package", where=package)
    while header := file.read(_HEADER_BYTES):
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        digits = header[48:58].strip()
        if not digits.isdigit():
            raise BadText("this Debian package is damaged", where=package)
        size_bytes = int(digits)
        if name.startswith("data.tar"):
            unpack = _UNPACKERS.get(name.removeprefix("data.tar"))
            if unpack is None:
                what = f"this Debian package uses unknown compression: {name}"
                raise BadText(what, where=package)
            part = io.BufferedReader(_Part(file, size_bytes))
            return tarfile.open(fileobj=unpack(part), mode="r|")
        file.seek(size_bytes + size_bytes % 2, 1)
    raise BadText("this Debian package has no data", where=package)


class _Part(io.RawIOBase):
    """The next so many bytes of a file: the unpacker must not read on."""

    def __init__(self, file: IO[bytes], size_bytes: int):
        self._file, self._left = file, size_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(min(len(buffer), self._left))
        buffer[: len(block)] = block
        self._left -= len(block)
        return len(block)
