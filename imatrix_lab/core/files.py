"""Files: whole or not at all; sha256; room on the disk."""

import contextlib
import errno
import hashlib
import json
import os
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from imatrix_lab.core.format import size
from imatrix_lab.errors import DiskFull, ImatrixLabError

_MAKE_ROOM = "imatrix-lab store gc, or set IMATRIX_LAB_CACHE to a larger disk; then run again"


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Return the sha256 (hex) of a file; `on_bytes` hears how many bytes are done."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            if on_bytes:
                on_bytes(done)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; a reader sees the old file or the new one, no part.

    Raises
    ------
    DiskFull : what was there stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def place(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link, or a whole copy on another disk.

    A linked file is the store's own, so it is made read-only.

    Raises
    ------
    DiskFull : a copy does not fit.
    """
    if target.exists() and _is_same(source, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        try:
            source.chmod(0o444)
            os.link(source, temporary)
        except OSError:
            need_room(target, source.stat().st_size, f"the copy {target.name}")
            shutil.copy2(source, temporary)


def _is_same(source: Path, target: Path) -> bool:
    if target.samefile(source):
        return True
    ours, theirs = source.stat(), target.stat()
    return ours.st_size == theirs.st_size and ours.st_mtime_ns == theirs.st_mtime_ns


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def disk_error(error: OSError, where: Path) -> Exception:
    """Return an error a user can act on (full disk, no permission), else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = free_bytes(where)
        return DiskFull(
            f"the disk is full ({size(free)} free); nothing that was whole is harmed",
            where=where,
            fix=_MAKE_ROOM,
        )
    beside = Path(str(error.filename)).parent == where.parent
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and beside and not where.parent.is_dir():
        return ImatrixLabError(
            f"there is no folder {where.parent}",
            where=where,
            fix=f"make it: mkdir -p {shlex.quote(str(where.parent))}; or choose another place",
        )
    if error.errno == errno.EISDIR and beside and where.is_dir():
        return ImatrixLabError("this is a folder, not a file", where=where, fix="name a file in it")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ImatrixLabError(
            f"cannot write here: {error.strerror}",
            where=error.filename or where,
            fix="choose another place: IMATRIX_LAB_CACHE=/a/folder for the store, --out for files",
        )
    return error


def free_bytes(path: Path) -> int:
    """Return the bytes free for this user on the disk that holds (or will hold) `path`."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def need_room(path: Path, size_bytes: int, what: str) -> None:
    """Raise `DiskFull` unless `size_bytes` and a margin of 64 MiB fit where `path` will be."""
    free = free_bytes(path)
    if free < size_bytes + (64 << 20):
        raise DiskFull(
            f"{what} needs {size(size_bytes)} and a little room, but only {size(free)} is free",
            where=path,
            fix=_MAKE_ROOM,
        )
