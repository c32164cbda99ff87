"""Files of steps on machines that have no folder in common: they go by way of the remote store.

A result names files by their paths. On its way from one machine to the next each path is one of
the classes here, which says how to find the file again; all else in a result stays as it is. What
is in the study's folder lies in the study's own part of the remote store, unless it is a file of
an artefact, which is there already.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from imatrix_lab.core import digests, interrupt
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.remote_store import Damaged, RemoteFailed, RemoteStore
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.study.folder import Folder

T = TypeVar("T")

STUDIES = "studies"
GIVEN = "given"
"""Files of the user's that a recipe names, in the folder of a study on another machine."""
PATIENCE_S, AGAIN_S = 180.0, 1.0
_AGAIN = "imatrix-lab study resume: what is missing is made again"


@dataclass(frozen=True)
class StudyFile:
    """A file of a study's folder, and the part of the remote store that has it."""

    name: str
    sha256: str
    size_bytes: int
    part: str


@dataclass(frozen=True)
class StoredFile:
    """A file of an artefact in the store, or `is_passing` in the study's own, for a time."""

    kind: str
    artifact: str
    file: str
    is_passing: bool


def part_of(token: str) -> str:
    """Return the part of the remote store for a study of this token."""
    return f"{STUDIES}/{token}"


def folder_of(part: str, store: Store) -> Folder:
    """Return where a study's files are on a machine that does not see its folder.

    In the store's ``work/``: ``store gc`` removes it once it is not used any more.
    """
    return Folder(store.root / "work" / f"study-{part.rpartition('/')[2]}")


class Carrier:
    """Sends and brings the files of one study, on a worker or where it was started.

    There quants that are not kept do not come.
    """

    def __init__(self, folder: Folder, store: Store, part: str, *, is_worker: bool):
        self.folder, self.store, self.is_worker = folder, store, is_worker
        self.part = RemoteStore(part)
        self.passing = Store(folder.of("work"), remote=self.part)
        self._artifacts, self._parts = set[str](), dict[str, str]()  # that are known to be there

    def sent(self, value: Any, progress: Progress) -> Any:
        """Return a result for another machine, once all of its files are in the remote store.

        Raises RemoteFailed.
        """
        return _patiently(lambda: _each(value, lambda x: self._send(x, progress)), progress)

    def brought(self, value: Any, progress: Progress) -> Any:
        """Return a result of another machine with paths of this one, where the files are now.

        Raises RemoteFailed.
        """
        return _patiently(lambda: _each(value, lambda x: self._bring(x, progress)), progress)

    def given(self, path: Path, progress: Progress) -> StudyFile:
        """Send a file of the user's. Raises RemoteFailed."""
        sha256 = digests.sha256_of(path, Session(self.store, progress))
        name = f"{GIVEN}/{sha256[:16]}/{path.name}"
        return _patiently(lambda: self._send_file(path, name, progress), progress)

    def _send(self, value: Any, progress: Progress) -> Any:
        if not isinstance(value, str) or not (path := Path(value)).is_absolute():
            return value
        for store, is_passing in ((self.passing, True), (self.store, False)):
            inside = _below(path, store.root)
            if len(inside) > 2 and inside[0] not in ("work", "locks"):
                kind, name, *file = inside
                artifact = store.own.bring(kind, name, progress)
                if artifact and store.remote and artifact.fingerprint not in self._artifacts:
                    store.remote.send(artifact.path, artifact.manifest, progress)
                    self._artifacts.add(artifact.fingerprint)
                return StoredFile(kind, name, "/".join(file), is_passing)
        inside = _below(path, self.folder.path)
        if inside and path.is_file():
            return self._send_file(path, "/".join(inside), progress)
        return value

    def _send_file(self, path: Path, name: str, progress: Progress) -> StudyFile:
        sha256 = digests.sha256_of(path, Session(self.store, progress))
        size_bytes = path.stat().st_size
        if sha256 not in self._parts:
            is_stored = RemoteStore().has_file(sha256, size_bytes)
            if not is_stored:
                self.part.send_file(path, sha256, progress)
            self._parts[sha256] = "" if is_stored else self.part.below
        return StudyFile(name, sha256, size_bytes, self._parts[sha256])

    def _bring(self, value: Any, progress: Progress) -> Any:
        if isinstance(value, StudyFile):
            return str(self.file(value, progress))
        if not isinstance(value, StoredFile):
            return value
        store = self.passing if value.is_passing else self.store
        if value.is_passing and not self.is_worker:  # nor need it be there any more
            return str(store.root / value.kind / value.artifact / value.file)
        if artifact := store.bring(value.kind, value.artifact, progress):
            return str(artifact.path / value.file)
        raise _missing(f"{value.kind} {value.artifact}", value.file)

    def file(self, file: StudyFile, progress: Progress) -> Path:
        """Return where a file of the study's folder is on this machine."""
        path, session = self.folder.of(*file.name.split("/")), Session(self.store, progress)
        with contextlib.suppress(OSError):
            is_there = path.stat().st_size == file.size_bytes
            if is_there and digests.sha256_of(path, session) == file.sha256:
                return path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            RemoteStore(file.part).fetch_file(file.sha256, file.size_bytes, path, progress)
        except Damaged as error:
            raise _missing("a file of the study", file.name) from error
        digests.remember(path, file.sha256, session)
        self._parts[file.sha256] = file.part
        return path


def _missing(what: str, name: str) -> RemoteFailed:
    return RemoteFailed(f"{what} cannot be had from the remote store", where=name, fix=_AGAIN)


def _patiently(do: Callable[[], T], progress: Progress) -> T:
    """Do something; if the remote store does not answer, again for `PATIENCE_S`."""
    until, has_said = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            return do()
        except RemoteFailed as error:
            if not error.may_pass or time.monotonic() > until:
                raise
            if not has_said:
                progress.say(f"{error.what}; trying again")
            has_said = True
        interrupt.check()
        time.sleep(AGAIN_S)


def _below(path: Path, root: Path) -> tuple[str, ...]:
    return path.relative_to(root).parts if path.is_relative_to(root) else ()


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _each(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_each(inner, change) for inner in value]
    return change(value)
