"""The Hub's own cache on this machine, which other programs use too (llama.cpp, transformers).

    <cache>/models--org--repo/refs/main              the commit that main was, when last seen
                              snapshots/<commit>/    the files of a commit: links into blobs/
                              blobs/<sha256>         the bytes; a Git SHA-1 for files outside LFS

What is here is used where it lies, and what we fetch goes here; nothing is ever deleted.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from imatrix_lab.core import interrupt

_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")


def default_root() -> Path:
    """Return where the Hub's library, and llama.cpp, keep what they fetch."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{home}/huggingface"
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(hub or f"{home}/hub")).expanduser().absolute()


@dataclass(frozen=True)
class CachedRepo:
    """A repository of models in the cache."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """Where it lies, or will."""
        return self.root / f"models--{self.name.replace('/', '--')}"

    def snapshot(self, commit: str) -> Path:
        """Return the folder of a commit."""
        return self.folder / "snapshots" / commit

    def blob(self, etag: str) -> Path:
        """Return where the bytes of a file are, or will be, on a disk with links."""
        return self.folder / "blobs" / etag

    def commits(self, revision: str | None) -> list[str]:
        """Return the commits here that a revision was, the last one first; any for the default."""
        if revision and _COMMIT.fullmatch(revision):
            commits = [revision]
        else:
            commits = [self._seen(revision or "main")]
        if revision is None:
            paths = (self.folder / "snapshots").glob("*")
            newest = sorted(paths, key=lambda p: (-p.stat().st_mtime, p.name))
            commits += [path.name for path in newest]
        return [c for c in dict.fromkeys(commits) if c and self.snapshot(c).is_dir()]

    def _seen(self, revision: str) -> str:
        try:
            return (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return ""

    def files(self, commit: str) -> dict[str, Path]:
        """Return the files that are here of a commit, by name."""
        snapshot = self.snapshot(commit)
        paths = sorted(p for p in snapshot.rglob("*") if p.is_file())
        return {p.relative_to(snapshot).as_posix(): p for p in paths}

    def remember(self, revision: str, commit: str) -> None:
        """Record which commit a revision is."""
        path = self.folder / "refs" / revision
        if revision != commit and self._seen(revision) != commit:
            with contextlib.suppress(OSError):  # a cache that others keep
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(commit, encoding="utf-8")

    def link(self, blob: Path, commit: str, name: str) -> bool:
        """Make a blob a file of a commit; return False if the disk takes no links: it is moved."""
        path = self.snapshot(commit) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return True
        if path.is_symlink():
            path.unlink()  # its blob was deleted
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:
            blob.replace(path)
            return False
        return True

    @contextlib.contextmanager
    def locked(self, etag: str) -> Iterator[None]:
        """Hold the lock that the Hub's library takes to fetch this blob."""
        path = self.root / ".locks" / self.folder.name / f"{etag}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        while True:
            interrupt.check()
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=interrupt.EVERY_S)
                break
        try:
            yield
        finally:
            lock.release()


def blob_of(path: Path) -> str:
    """Return the name of the blob that a file of a commit is, or "" on a disk without links."""
    return path.readlink().name if path.is_symlink() else ""


def announced_sha256(path: Path) -> str:
    """Return the sha256 that the cache says a file has, or ""."""
    name = blob_of(path)
    return name if _SHA256.fullmatch(name) else ""
