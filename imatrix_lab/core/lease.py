"""A lock for folders that several machines see, where ``flock`` cannot be trusted.

    <folder>/<n>    the holder of turn n writes it again and again; ``free`` once it is released

The lock belongs to the file with the highest number. The next turn is taken by creating the file
n + 1 exclusively, which one process alone can do on NFS, SMB and sshfs alike, once n is free or
has expired. A holder changes its own file and no other, so one that was paused for an hour can
harm nobody's turn when it wakes up. Only who holds a later turn removes earlier files; the highest
stays, so that numbers never begin anew.

A turn expires when somebody who waits has seen the same bytes in its file for `EXPIRES_S` of their
own monotonic clock: clocks of machines are never compared. Of a process that has died on this very
machine this is known at once. One that wakes up after its turn expired may still be at work: what
is built under this lock has to be written apart, and to appear by one rename.
"""

import contextlib
import functools
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import psutil

RENEWED_S, EXPIRES_S, POLL_S = 10.0, 90.0, 1.0
FREE = b"free"
NETWORK = {
    "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "lustre", "gpfs",
    "beegfs", "ceph", "fuse.ceph", "fuse.glusterfs", "osxfuse", "macfuse", "webdav", "afpfs",
}  # fmt: skip
"""File systems that another machine may see too, as mount tables name them."""


class Lease:
    """The lock of a folder; `acquire` as of `filelock.FileLock`, whose `Timeout` it raises.

    Attributes
    ----------
    token : names this turn, among all machines.
    before : the token of the holder before, if it did not release the lock.
    is_before_gone : that holder is known to have ended, so nobody writes any more.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.token, self.before, self.is_before_gone = secrets.token_hex(6), "", False
        self._seen: tuple[int, bytes] | None = None
        self._seen_s = self._looked_s = -math.inf
        self._released = threading.Event()
        self._identity, self._file = _identity(), -1

    @contextlib.contextmanager
    def _held(self) -> Iterator["Lease"]:
        try:
            yield self
        finally:
            self.release()

    def acquire(self, timeout: float = -1) -> contextlib.AbstractContextManager["Lease"]:
        """Take the lock within `timeout` seconds (negative: wait for it), or raise `Timeout`.

        A turn that may have expired is watched from call to call.
        """
        until = time.monotonic() + timeout if timeout >= 0 else float("inf")
        self._folder.mkdir(parents=True, exist_ok=True)
        while not self._take():
            left = until - time.monotonic()
            if left <= 0:
                raise filelock.Timeout(str(self._folder))
            time.sleep(min(left, POLL_S))
        threading.Thread(target=self._renew, daemon=True, name=f"lease {self._folder.name}").start()
        return self._held()

    def _take(self) -> bool:
        if time.monotonic() < self._looked_s + POLL_S:
            return False
        self._looked_s = time.monotonic()
        number = _highest(self._folder)
        if number and not self._is_over(number):
            return False
        path = self._folder / str(number + 1)
        try:
            self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        if _highest(self._folder) != number + 1:  # our number was taken, and removed, long ago
            os.close(self._file)
            path.unlink(missing_ok=True)
            return False
        self._write(self._content(0))
        for n in _numbers(self._folder):
            if n <= number:
                with contextlib.suppress(OSError):
                    (self._folder / str(n)).unlink(missing_ok=True)
        return True

    def _is_over(self, number: int) -> bool:
        """Whether a turn was released, or has expired."""
        try:
            content = (self._folder / str(number)).read_bytes()
        except OSError:
            return False  # another turn has come
        self.before, self.is_before_gone = "", False
        if content.startswith(FREE):
            return True
        if self._seen != (number, content):
            self._seen, self._seen_s = (number, content), time.monotonic()
        words = content.decode(errors="replace").split()
        self.before = words[0] if words else ""
        self.is_before_gone = len(words) == 5 and _has_ended(*words[1:4])
        return self.is_before_gone or time.monotonic() - self._seen_s > EXPIRES_S

    def _content(self, count: int) -> bytes:
        return f"{self.token} {self._identity} {count:012d}\n".encode()

    def _write(self, content: bytes) -> None:
        os.pwrite(self._file, content, 0)
        os.fsync(self._file)

    def _renew(self) -> None:
        count = 0
        while not self._released.wait(RENEWED_S):
            count += 1
            with contextlib.suppress(OSError):  # a disk that is away for a while; our turn is over
                self._write(self._content(count))

    def release(self) -> None:
        """Let the next one in."""
        self._released.set()
        with contextlib.suppress(OSError):
            self._write(FREE.ljust(len(self._content(0))))
        os.close(self._file)


def lock(path: Path) -> filelock.BaseFileLock | Lease:
    """Return the lock at a path: a lease where another machine may see it."""
    if is_on_network(path.parent):
        return Lease(path.with_name(f"{path.name}-turns"))
    return filelock.FileLock(path)


@functools.cache
def is_on_network(folder: Path) -> bool:
    """Whether a folder is on a file system that another machine may see."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    real, mounts = os.path.realpath(existing), psutil.disk_partitions(all=True)
    above = [m for m in mounts if os.path.commonpath((real, m.mountpoint)) == m.mountpoint]
    return bool(above) and max(above, key=lambda m: len(m.mountpoint)).fstype.lower() in NETWORK


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def _highest(folder: Path) -> int:
    return max(_numbers(folder), default=0)


def _machine() -> str:
    """Return what names this machine since its last start, and its set of processes."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the machine did; "" if it has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def _identity() -> str:
    """Return what names this process among all machines, as far as this system tells."""
    try:
        return f"{_machine()} {os.getpid()} {_started(os.getpid())}"
    except OSError:
        return f"{socket.gethostname()} {os.getpid()} -"


def _has_ended(machine: str, pid: str, started: str) -> bool:
    """Whether a process is known to have ended; of other machines nothing is known."""
    try:
        if machine != _machine():
            return False
        return _started(int(pid)) != started
    except (FileNotFoundError, ProcessLookupError):
        return Path("/proc/self/stat").exists()
    except (OSError, ValueError):
        return False
