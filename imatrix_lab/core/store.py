"""The store of results: an artefact is a directory, keyed by everything that changes it.

    <root>/<kind>/<label>-<fingerprint>/   an artefact: its files, and manifest.json
    <root>/work/<kind>-<fingerprint>/      one being built: out/, and scratch that survives a kill
    <root>/locks/                          one builder per fingerprint, across processes

Where several machines see the store, ``locks/shared`` exists: locks are leases (lease.py), and one
being built is in ``work/<kind>-<fingerprint>.<token>/``, since a builder that was paused until its
lease expired may go on beside the next one. The first rename wins.

A builder works in ``work/``; its files are flushed, the manifest is written last, and one rename
makes the artefact exist. A directory without a manifest is not an artefact. The manifest holds
no time and no path of this machine: equal inputs give equal bytes.

Behind it there may be a remote store (remote_store.py): what is not here comes from there instead
of being built, and what is built here goes there.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import shlex
import shutil
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from imatrix_lab.core import interrupt, lease, remote_store
from imatrix_lab.core.files import (
    canonical_json,
    disk_error,
    flush,
    sealed_json,
    sha256_file,
    write_whole,
)
from imatrix_lab.core.lease import Lease
from imatrix_lab.core.manifest import KEY_CHARS, MANIFEST, parsed
from imatrix_lab.core.paths import expanded
from imatrix_lab.core.progress import Progress, Silent
from imatrix_lab.core.remote_store import RemoteStore
from imatrix_lab.errors import ImatrixLabError

STORE_VERSION = 1
"""Raise it when a builder's output changes for the same inputs. 1: first layout."""

SHARED = "shared"
SHOW_HASHING_BYTES = 2 << 30  # a few seconds

Inputs = Mapping[str, Any]
Build = Callable[[Path, Path], Mapping[str, Any]]
"""``build(out, scratch) -> facts``: fills `out`; `scratch` outlives a killed run."""
BuildTogether = Callable[[Mapping[int, tuple[Path, Path]]], Mapping[int, Mapping[str, Any]]]
"""The same for several: index -> (out, scratch) in, index -> facts out."""


def default_root() -> Path:
    """Return ``$IMATRIX_LAB_CACHE``, else the user's cache directory."""
    override = os.environ.get("IMATRIX_LAB_CACHE")
    return expanded(override) if override else Path(platformdirs.user_cache_dir("imatrix-lab"))


def os_error(error: OSError, where: Path) -> Exception:
    """Return what `disk_error` does, or that a file of the store was removed under its user."""
    name, root = error.filename, default_root()
    is_ours = root in Path(name).parents if name else f"{root}{os.sep}" in str(error)  # pyarrow's
    if isinstance(error, FileNotFoundError) and is_ours:
        what = "a file of the store was removed while it was used"
        return ImatrixLabError(what, where=name or root, fix="run the same command again")
    return disk_error(error, where)


def fingerprint(kind: str, inputs: Inputs) -> str:
    """Return the sha256 (hex) of everything that determines an artefact."""
    text = canonical_json({"kind": kind, "inputs": dict(inputs), "store": STORE_VERSION})
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A complete artefact."""

    path: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """The sha256 of its inputs."""
        return str(self.manifest["fingerprint"])

    @property
    def facts(self) -> dict[str, Any]:
        """What its builder returned."""
        return dict(self.manifest["facts"])

    def sha256(self, name: str) -> str:
        """Return the recorded sha256 of one of its files."""
        return str(self.manifest["files"][name]["sha256"])

    def size_bytes(self) -> int:
        """Return the sum of its files' sizes."""
        return sum(int(f["size_bytes"]) for f in self.manifest["files"].values())

    def last_used_s(self) -> float:
        """Return when it was last used, in seconds since the epoch."""
        return (self.path / MANIFEST).stat().st_mtime


def require_private(artifact: Artifact) -> Artifact:
    """Return an artefact that holds code; raises ImatrixLabError if anyone may put another there.

    A store may be shared with people who are trusted, by a group that may write; not with all.
    """
    root = artifact.path.parents[1]
    for path in (root, artifact.path.parent, artifact.path, *artifact.path.rglob("*")):
        mode = path.stat().st_mode if path.exists() else 0
        if mode & stat.S_IWOTH and not (mode & stat.S_ISVTX):
            what = "every user of this machine may replace the programs in this store"
            fix = f"if you trust what is in it: chmod -R o-w {shlex.quote(str(root))}"
            raise ImatrixLabError(what, where=path, fix=fix)
    return artifact


class NotBuilt(Exception):
    """A read-only store does not have the artefact."""


class Store:
    """Artefacts under one root, and in the remote store behind it.

    That of the default root is ``$IMATRIX_LAB_REMOTE``'s; any other root has none unless told.
    `get` of a `read_only` store raises `NotBuilt`, for plans: it looks at this machine alone.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        read_only: bool = False,
        remote: RemoteStore | None = None,
    ):
        self.remote = remote if root or read_only else remote_store.configured()
        self.root = (root or default_root()).absolute()
        self.read_only = read_only

    @property
    def own(self) -> "Store":
        """This store without the remote one, for programs: others may write there."""
        return Store(self.root, read_only=self.read_only)

    def find(self, kind: str, inputs: Inputs) -> Artifact | None:
        """Return the artefact for these inputs, or None."""
        return self._bring(kind, kind, fingerprint(kind, inputs), Silent())

    def bring(self, kind: str, name: str, progress: Progress) -> Artifact | None:
        """Return the artefact whose folder has this name, in another store maybe, or None."""
        label, _, key = name.rpartition("-")
        return self._bring(kind, label, key, progress)

    def _bring(self, kind: str, label: str, key: str, progress: Progress) -> Artifact | None:
        if (artifact := self._find(kind, key)) or not self.remote:
            return artifact
        name = _lock_name(kind, key)
        with self.lock(name, progress) as lock, self._workplace(name, lock) as work:
            return self._find(kind, key) or self._fetch(work, kind, label, key, progress)

    def like(self, kind: str, some: Inputs) -> Artifact | None:
        """Return the artefact used last of those whose inputs include these, or None."""
        every = (_read(path.parent) for path in sorted((self.root / kind).glob(f"*/{MANIFEST}")))
        fitting = [a for a in every if a and some.items() <= a.manifest["inputs"].items()]
        return max(fitting, key=Artifact.last_used_s, default=None)

    def get(
        self, kind: str, label: str, inputs: Inputs, build: Build, progress: Progress | None = None
    ) -> Artifact:
        """Return the artefact for these inputs, building it with the lock held if needed.

        `inputs` are everything that changes the result, JSON-able, free of paths and times;
        `label` has no part in the key. On an error, what was built so far stays in ``work/`` for
        the next run.
        """
        progress = progress or Silent()
        key = fingerprint(kind, inputs)
        name = _lock_name(kind, key)
        if artifact := self._find(kind, key):
            self._remove_scratch(name)
            return _touched(artifact)
        if self.read_only:
            raise NotBuilt(kind)
        try:
            with self.lock(name, progress) as lock:
                if artifact := self._find(kind, key):  # built while we waited
                    return _touched(artifact)
                with self._workplace(name, lock) as work:
                    if artifact := self._fetch(work, kind, label, key, progress):
                        return artifact
                    if changed := self._changed_inputs(kind, label, inputs):
                        progress.say(f"re-running {kind} {label}: changed: {changed}")
                    artifact = self._build(work, kind, label, inputs, build, progress)
                    self._send(artifact, progress)
                    return artifact
        except OSError as error:
            raise disk_error(error, self.root / "work" / name) from error

    @contextlib.contextmanager
    def _workplace(self, name: str, lock: Any) -> Iterator[Path]:
        """Give the folder to build in, with the scratch of the build before."""
        work = self.root / "work" / name
        if not isinstance(lock, Lease):
            for discarded in work.parent.glob(f"{name}.*"):  # by a run that was killed at it
                _remove_work(discarded)
            yield work
            return
        own, left = (work.with_name(f"{name}.{suffix}") for suffix in (lock.token, "left"))
        before = work.with_name(f"{name}.{lock.before}") if lock.before else left
        may_be_alive = lock.before and not lock.is_before_gone  # then it goes on there
        try:
            if may_be_alive:
                shutil.copytree(before / "scratch", own / "scratch")
            else:
                before.rename(own)
        except (OSError, shutil.Error):  # there is none, or not all of it
            shutil.rmtree(own, ignore_errors=True)
        try:
            yield own
            if may_be_alive:
                _remove_work(before)
        finally:
            with contextlib.suppress(OSError):  # it is finished; or another's is there
                own.rename(left)

    def _build(
        self, work: Path, kind: str, label: str, inputs: Inputs, build: Build, progress: Progress
    ) -> Artifact:
        key = fingerprint(kind, inputs)
        out, scratch = work / "out", work / "scratch"
        if out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        try:
            manifest = {
                "kind": kind,
                "fingerprint": key,
                "store_version": STORE_VERSION,
                "inputs": dict(inputs),
                "facts": dict(build(out, scratch)),
                "files": _inventory(out, progress),
            }
            write_whole(out / MANIFEST, sealed_json(manifest))
        except Exception:
            if artifact := self._find(kind, key):  # made by another, who took this for dead
                return artifact
            raise
        return self._put_in_place(work, label, manifest)

    def _fetch(
        self, work: Path, kind: str, label: str, key: str, progress: Progress
    ) -> Artifact | None:
        """Return an artefact that the remote store has, or None."""
        if self.remote and not self.remote.is_away():
            with self.remote.if_there(progress):
                shutil.rmtree(work / "out", ignore_errors=True)
                if manifest := self.remote.fetch(kind, key[:KEY_CHARS], work / "out", progress):
                    return self._put_in_place(work, label, manifest)
        return None

    def _send(self, artifact: Artifact, progress: Progress) -> None:
        if self.remote and not self.remote.is_away():
            with self.remote.if_there(progress):
                self.remote.send(artifact.path, artifact.manifest, progress)

    def _put_in_place(self, work: Path, label: str, manifest: dict[str, Any]) -> Artifact:
        """Make what is in ``work/.../out`` an artefact, by one rename; another's stays."""
        out = work / "out"
        name = f"{label}-{manifest['fingerprint'][:KEY_CHARS]}"
        final = self.root / str(manifest["kind"]) / name
        final.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                out.replace(final)
            except OSError:
                if not final.exists():
                    raise
                if not (artifact := _read(final)):
                    self._discard(final)
                    continue
            else:
                artifact = Artifact(final, manifest)
            shutil.rmtree(work, ignore_errors=True)
            return artifact

    def _discard(self, path: Path) -> None:
        """Remove what is no artefact: its manifest is missing or its files do not match."""
        aside = self.root / "work" / f"{path.parent.name}-{path.name[-KEY_CHARS:]}"
        aside = aside.with_name(f"{aside.name}.{secrets.token_hex(6)}")
        path.rename(aside)
        if _read(aside):  # another has just put it there
            aside.rename(path)
        else:
            shutil.rmtree(aside)

    def _remove_scratch(self, name: str) -> None:
        """Remove what a run left that was killed right after it had finished the artefact."""
        left = [] if self.read_only else [*self.root.glob(f"work/{name}*")]
        if left:
            with (
                contextlib.suppress(filelock.Timeout, OSError),
                self._lock(name).acquire(timeout=0),
            ):
                for work in left:
                    _remove_work(work)

    def drop(self, kind: str, inputs: Inputs, progress: Progress) -> None:
        """Remove the artefact for these inputs, if there is one, from the remote store too."""
        key = fingerprint(kind, inputs)
        with self.lock(_lock_name(kind, key), progress):
            if artifact := self._find(kind, key):
                _remove(artifact.path)
            if self.remote:
                with self.remote.if_there(progress):
                    self.remote.drop(kind, key)

    def follow_remote(self) -> None:
        """Remove what the remote store does not have any more, unless it is being built."""
        remote = self.remote
        for artifact in self.artifacts() if remote else ():
            kind, key = str(artifact.manifest["kind"]), artifact.fingerprint
            with (
                contextlib.suppress(filelock.Timeout),
                self._lock(_lock_name(kind, key)).acquire(timeout=0),
            ):
                if remote and not remote.has(kind, key):
                    _remove(artifact.path)

    def get_together(
        self,
        kind: str,
        items: Sequence[tuple[str, Inputs]],
        build: BuildTogether,
        progress: Progress | None = None,
        at_once: int = sys.maxsize,
    ) -> list[Artifact]:
        """Return artefacts, by label and inputs, that are cheaper to build at one time.

        `build` is called with those that are missing, all their locks held; `at_once` of them, as
        often as it takes.
        """
        together = _Together(self, kind, items, build, progress, at_once)
        while together.waiting:
            together.take({})
        return [together.artifacts[i] for i in range(len(items))]

    def lock(self, name: str, progress: Progress) -> Any:
        """Take a named lock, waiting for it if needed; for ``with``."""
        lock = self._lock(name)
        try:
            return lock.acquire(timeout=0)  # not the lock: entering that would acquire it twice
        except filelock.Timeout:
            progress.say(f"{name} is being built elsewhere; waiting for it")
        while True:
            interrupt.check()
            with contextlib.suppress(filelock.Timeout):
                return lock.acquire(timeout=interrupt.EVERY_S)

    def share(self) -> None:
        """Let this store be used by several machines from now on."""
        path = self.root / "locks" / SHARED
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def _lock(self, name: str) -> filelock.BaseFileLock | Lease:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / SHARED).exists():
            if not lease.is_on_network(folder):
                return filelock.FileLock(folder / f"{name}.lock")
            self.share()
        return Lease(folder / name)

    def artifacts(self) -> Iterator[Artifact]:
        """Yield every complete artefact, by kind and name."""
        for path in sorted(self.root.glob(f"*/*/{MANIFEST}")):
            is_artifact = path.parent.parent.name not in {"work", "locks"}
            if is_artifact and (artifact := _read(path.parent)):
                yield artifact

    def unfinished(self) -> Iterator[tuple[Path, int]]:
        """Yield the directories of unfinished builds, by their names, and their sizes in bytes."""
        named = re.compile(rf"[\w-]+-[0-9a-f]{{{KEY_CHARS}}}(\.\w+)?")
        for path in filter(lambda p: named.fullmatch(p.name), sorted(self.root.glob("work/*"))):
            size_bytes = 0
            for file in path.rglob("*"):
                with contextlib.suppress(OSError):  # it vanished meanwhile
                    size_bytes += file.lstat().st_size if file.is_file() else 0
            yield path, size_bytes

    def collect_garbage(self, unused_for_s: float) -> list[tuple[Path, int]]:
        """Remove artefacts and unfinished builds unused for a time; return them and their bytes.

        What is being built is skipped, and so is what a link leads to outside the root.
        """
        before, removed = time.time() - unused_for_s, list[tuple[Path, int]]()
        artifacts = [(a.path, a.size_bytes()) for a in self.artifacts()]
        for path, size_bytes in [*artifacts, *self.unfinished()]:
            if path.is_symlink() or not path.resolve().is_relative_to(self.root.resolve()):
                continue
            name = path.name.partition(".")[0]
            if path.parent.name != "work":
                name = f"{path.parent.name}-{path.name[-KEY_CHARS:]}"
            with contextlib.suppress(filelock.Timeout), self._lock(name).acquire(timeout=0):
                if _last_used_s(path) <= before:
                    (_remove_work if path.parent.name == "work" else _remove)(path)
                    removed.append((path, size_bytes))
        return removed

    def _find(self, kind: str, key: str) -> Artifact | None:
        for path in (self.root / kind).glob(f"*-{key[:KEY_CHARS]}"):
            if (artifact := _read(path)) and artifact.fingerprint.startswith(key):
                return artifact
        return None

    def _changed_inputs(self, kind: str, label: str, inputs: Inputs) -> str:
        """Return which inputs differ from the nearest artefact of the same label, or ""."""
        inputs = json.loads(canonical_json(dict(inputs)))  # as a manifest has them
        nearest: list[str] = []
        for path in sorted((self.root / kind).glob(f"{label}-*")):
            if path.name[: -KEY_CHARS - 1] == label and (artifact := _read(path)):
                old = artifact.manifest["inputs"]
                if not old.keys() & inputs.keys():
                    continue  # another kind of thing
                differing = [k for k in {**old, **inputs} if old.get(k) != inputs.get(k)]
                if not nearest or len(differing) < len(nearest):
                    nearest = differing
        return ", ".join(sorted(nearest))


def _lock_name(kind: str, key: str) -> str:
    return f"{kind}-{key[:KEY_CHARS]}"


def _touched(artifact: Artifact) -> Artifact:
    with contextlib.suppress(OSError):  # a cache that someone else owns
        os.utime(artifact.path / MANIFEST)
    return artifact


def _read(path: Path) -> Artifact | None:
    """Return the artefact in a directory, or None: a file lacks its recorded size, say."""
    try:
        manifest = parsed((path / MANIFEST).read_bytes())
        whole = manifest is not None and all(
            (path / name).stat().st_size == entry["size_bytes"]
            for name, entry in manifest["files"].items()
        )
    except (OSError, ValueError):
        return None
    return Artifact(path, manifest) if manifest and whole else None


def _remove(path: Path) -> None:
    (path / MANIFEST).unlink(missing_ok=True)  # first: no half artefact
    shutil.rmtree(path)


def _remove_work(path: Path) -> None:
    """Remove a build; should its builder wake up meanwhile, it has no `out` to put into place."""
    with contextlib.suppress(OSError):
        (path / "out").rename(path / "removed")
    shutil.rmtree(path, ignore_errors=True)


def _last_used_s(path: Path) -> float:
    """Return when an artefact or an unfinished build was last used; infinity if it is gone."""
    try:
        return (path if path.parent.name == "work" else path / MANIFEST).stat().st_mtime
    except OSError:
        return math.inf


def _inventory(out: Path, progress: Progress) -> dict[str, dict[str, Any]]:
    """Flush every file to disk; return size and sha256 by name."""
    inventory = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and not p.is_symlink()):
        flush(path)
        size_bytes = path.stat().st_size
        shown = progress if size_bytes >= SHOW_HASHING_BYTES else Silent()
        with shown.task(f"sha256 of {path.name}", size_bytes, "B") as task:
            sha256 = sha256_file(path, task.update)
        name = path.relative_to(out).as_posix()
        inventory[name] = {"size_bytes": size_bytes, "sha256": sha256}
    return inventory


class _Together:
    """Artefacts that are built at one time; no function of functions, which Python frees late."""

    def __init__(
        self,
        store: Store,
        kind: str,
        items: Sequence[tuple[str, Inputs]],
        build: BuildTogether,
        progress: Progress | None,
        at_once: int,
    ):
        self._store, self._kind, self._items, self._build = store, kind, items, build
        self._progress, self._at_once = progress, at_once
        # one order everywhere: two runs cannot wait for each other
        order = sorted(range(len(items)), key=lambda i: fingerprint(kind, items[i][1]))
        self.waiting = deque(order)
        self.artifacts: dict[int, Artifact] = {}

    def take(self, missing: Mapping[int, tuple[Path, Path]]) -> Mapping[int, Any]:
        """Take what waits until enough is missing; build that, and return its facts."""
        while self.waiting and len(missing) < self._at_once:
            if built := self._take_one(self.waiting.popleft(), missing):
                return built
        return self._build(missing) if missing else {}

    def _take_one(self, index: int, missing: Mapping[int, tuple[Path, Path]]) -> Mapping[int, Any]:
        built: Mapping[int, Any] = {}

        def build_one(out: Path, scratch: Path) -> Mapping[str, Any]:
            nonlocal built
            built = self.take({**missing, index: (out, scratch)})
            return dict(built[index])

        item = self._items[index]
        self.artifacts[index] = self._store.get(self._kind, *item, build_one, self._progress)
        return built
