"""Files: atomic writing, sha256, room on the disk."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from imatrix_lab.core.format import size
from imatrix_lab.core.names import HALVES, readable
from imatrix_lab.errors import DiskFull, ImatrixLabError

_LEFT_AFTER_S = 3600.0
"""A copy under way is written to more often."""
_FREE_SPACE = "imatrix-lab store gc, or set IMATRIX_LAB_CACHE to a larger disk; then run again"


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys: equal values give equal bytes; ValueError: JSON has no such."""
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    text += "\n"
    # halves of characters are from names of files whose bytes are no UTF-8
    return HALVES.sub(lambda m: readable(m[0]).replace("\\", "\\\\"), text)


def from_json(text: str | bytes) -> Any:
    """Return the value of JSON; raises ValueError, also for what is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


DIGEST = "digest"


def sealed_json(table: Mapping[str, Any]) -> str:
    """Return canonical JSON with a digest of all of it; `unsealed` reads it."""
    return canonical_json({**table, DIGEST: _digest(table)})


def unsealed(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table without its digest; raises ValueError if it is not as it was written.

    One without a digest passes: earlier versions wrote none.
    """
    rest = {key: value for key, value in table.items() if key != DIGEST}
    if table.get(DIGEST, (own := _digest(rest))) != own:
        raise ValueError("it is not as it was written: its digest is another")
    return rest


def _digest(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(dict(table)).encode()).hexdigest()[:16]


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Return the sha256 (hex) of a file; `on_bytes` is called with the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            if on_bytes:
                on_bytes(done)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, which then replaces `path`: never a partial file."""
    temporary = path.with_name(f"{_beginning(path)}{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        flush(temporary)
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def left_of(path: Path) -> list[Path]:
    """Return the temporary files of `replacing`, under way or left by runs that were killed."""
    return [*path.parent.glob(f"{glob.escape(_beginning(path))}*-*.tmp")]


def _beginning(path: Path) -> str:
    return f".{path.name[:40]}."  # the whole name and more may be too long


def flush(path: Path) -> None:
    """Wait until a file's bytes are on the disk; before it gets the name of a finished one."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def place(source: Path, target: Path) -> None:
    """Put `source` at `target` too: a hard link, or a copy on another disk.

    A linked file is the store's own, so it is made read-only.
    """
    if target.exists():
        ours, theirs = source.stat(), target.stat()
        same = (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)
        if same or target.samefile(source):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        _remove_left(target)
        try:
            source.chmod(0o444)
            os.link(source, temporary)
        except OSError:
            need_room(target, source.stat().st_size, f"the copy {target.name}")
            shutil.copyfile(source, temporary)
            with contextlib.suppress(OSError):  # FAT, and others' disks
                shutil.copystat(source, temporary)


def _remove_left(target: Path) -> None:
    """Remove what killed runs have left of copies to `target`, here or on another machine."""
    for left in left_of(target):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_ctime > _LEFT_AFTER_S:
                left.unlink()


def link(source: Path, target: Path) -> None:
    """Make `target` lead to `source`: a symbolic link, or a copy where the disk has no links."""
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(source)
    except OSError:
        need_room(target, source.stat().st_size, f"the copy {target.name}")
        shutil.copyfile(source, target)


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def disk_error(error: OSError, where: Path) -> Exception:
    """Return an error a user can act on (full disk, no permission), else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = f"the disk is full ({size(free_bytes(where))} free); finished files are intact"
        return DiskFull(what, where=where, fix=_FREE_SPACE)
    beside = Path(str(error.filename)).parent == where.parent
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and beside and not where.parent.is_dir():
        fix = f"mkdir -p {shlex.quote(str(where.parent))}, or choose another place"
        return ImatrixLabError(f"there is no folder {where.parent}", where=where, fix=fix)
    if error.errno == errno.ENAMETOOLONG:
        n_bytes = max(len(os.fsencode(p)) for p in (*where.parts, *Path(str(error.filename)).parts))
        what = f"this name is too long: {n_bytes} bytes, and a disk takes 255"
        return ImatrixLabError(what, where=where, fix="choose a shorter name")
    if error.errno == errno.EISDIR and beside and where.is_dir():
        return ImatrixLabError("this is a folder, not a file", where=where, fix="name a file in it")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "choose another place: IMATRIX_LAB_CACHE=/a/folder for the store, --out for files"
        what = f"cannot write here: {error.strerror}"
        return ImatrixLabError(what, where=error.filename or where, fix=fix)
    return error


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk that holds (or will hold) `path`."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def need_room(path: Path, size_bytes: int, what: str) -> None:
    """Raise `DiskFull` unless `size_bytes` and a margin of 64 MiB fit where `path` will be."""
    free = free_bytes(path)
    if free < size_bytes + (64 << 20):
        what = f"{what} needs {size(size_bytes)} and a little more, but only {size(free)} is free"
        raise DiskFull(what, where=path, fix=_FREE_SPACE)
