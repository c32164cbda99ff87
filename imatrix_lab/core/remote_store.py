"""The remote store: what machines without a common folder share, in S3 and the like, by fsspec.

    <url>/<kind>/<fingerprint, 16 characters>/manifest.json    as in the store
    <url>/files/<sha256>                                       the bytes of each file, once

`$IMATRIX_LAB_REMOTE` is the URL. Files go there first and the manifest last, so that half an upload
is no artefact; what comes from there is verified by sha256 while it comes. A file is replaced only
where its size is wrong, or after its bytes were found to be; a manifest only after that.

The URL may hold a password: it stays in the environment of each process, and is in no object that
travels, no message and no traceback.
"""

import contextlib
import functools
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from imatrix_lab.core import interrupt
from imatrix_lab.core.files import flush, need_room, replacing
from imatrix_lab.core.manifest import KEY_CHARS, MANIFEST, parsed
from imatrix_lab.core.paths import pip_install
from imatrix_lab.core.progress import Progress, Silent
from imatrix_lab.errors import FetchFailed, ImatrixLabError, MissingTool, UsageError

REMOTE = "IMATRIX_LAB_REMOTE"
FILES = "files"
BLOCK_BYTES, SHOW_BYTES = 1 << 22, 1 << 26
RETRY_S = 60.0
"""How long nothing is asked of a place that did not answer."""
_SETTING = f"{REMOTE}=s3://BUCKET/PREFIX, or another URL of fsspec's"
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
    "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol",
}  # fmt: skip
_FOLDERS = {"file", "local", "memory", "sftp", "ssh", "smb", "ftp", "hdfs", "webhdfs", "webdav"}
"""Places with folders, which have to be made; elsewhere they would be buckets."""
_DENIED = re.compile("Permission|Credential|Forbidden|AccessDenied|Authenti|InvalidAccessKey|Token")
_USER = re.compile(r"(?<=://)[^/@\s]+@")


class RemoteFailed(FetchFailed):
    """The remote store did not do what was asked; `may_pass`: it may at another time."""

    may_pass = True


class Damaged(Exception):
    """Bytes of the remote store are not those that they should be."""


@dataclass
class _Place:
    """A file system and a folder in it; `shown` is its URL without what may be secret."""

    url: str
    shown: str
    secrets: tuple[str, ...]
    fs: Any = None
    root: str = ""
    has_answered: bool = False
    is_read_only: bool = False
    has_said: bool = False
    away_until: float = 0.0

    def open(self) -> None:
        """Connect, once.

        Raises UsageError: there is no such kind of place, or no such bucket; MissingTool: a
        package for it is missing; what its library raises.
        """
        if self.fs is not None:
            return
        import fsspec

        scheme = urlsplit(self.url).scheme
        options = {"auto_mkdir": True} if scheme in ("file", "local") else {}
        try:
            fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **options)
        except ImportError:
            package = _PACKAGES.get(scheme, "what fsspec's documentation names")
            what = f"{scheme}:// needs a package that is not installed"
            raise MissingTool(what, where=REMOTE, fix=pip_install(package)) from None
        except ValueError:
            what = f"fsspec knows no kind of place that begins with {scheme}://"
            raise UsageError(what, where=REMOTE, fix=_SETTING) from None
        bucket = root.partition("/")[0]
        if bucket and ":" not in bucket and not _has_folders(fs):
            try:
                fs.info(bucket)
            except FileNotFoundError:
                what, fix = "there is no such bucket", f"make it, or correct {REMOTE}"
                raise UsageError(what, where=self.shown, fix=fix) from None
            except PermissionError:  # who may use a part of a bucket may not ask for it
                pass
        self.fs, self.root = fs, root.rstrip("/")

    def answered(self) -> None:
        """Take note that it works."""
        self.has_answered, self.has_said = True, False


@functools.cache
def _place(url: str) -> _Place:
    split = urlsplit(url)
    if not split.scheme:
        raise UsageError(f"{REMOTE} is not a URL", fix=_SETTING)
    shown = f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path}"
    secrets = {*split.netloc.rpartition("@")[0].split(":"), split.query, split.fragment}
    secrets |= {unquote(secret) for secret in secrets}
    return _Place(url, shown, tuple(filter(None, secrets)))


def _own_place() -> _Place:
    return _place(os.environ[REMOTE])


def configured() -> "RemoteStore | None":
    """Return the remote store of ``$IMATRIX_LAB_REMOTE``, if that is set."""
    return RemoteStore() if os.environ.get(REMOTE) else None


@dataclass(frozen=True)
class RemoteStore:
    """The remote store of the process it is in, or with `below` a part of it."""

    below: str = ""

    # -- artefacts: what cannot be had is made, what cannot be sent stays here

    @contextlib.contextmanager
    def if_there(self, progress: Progress) -> Iterator[None]:
        """Go on without the remote store if it does not answer; say so once.

        Raises what it raises if it never worked and denies access: then the setting is wrong.
        """
        place = _own_place()
        try:
            yield
        except RemoteFailed as error:
            if not (error.may_pass or place.has_answered):
                raise
            if not place.has_said:
                progress.say(f"note: {error.what}; going on without it")
            place.has_said = True
            if error.may_pass:
                place.away_until = time.monotonic() + RETRY_S

    def is_away(self) -> bool:
        """Whether it did not answer a short time ago."""
        return time.monotonic() < _own_place().away_until

    def fetch(self, kind: str, key: str, out: Path, progress: Progress) -> dict[str, Any] | None:
        """Bring an artefact into a new folder; return its manifest, or None if it is not there.

        One whose bytes are not right is removed there. Raises RemoteFailed.
        """
        text = self._read(self._manifest(kind, key))
        if text is None:
            return None
        try:
            if not (manifest := parsed(text)) or not manifest["fingerprint"].startswith(key):
                raise Damaged(MANIFEST)
            out.mkdir(parents=True)
            need_room(out, sum(f["size_bytes"] for f in manifest["files"].values()), kind)
            for name, entry in manifest["files"].items():
                if not _is_inside(name):
                    raise Damaged(name)
                target = out / name
                target.parent.mkdir(parents=True, exist_ok=True)
                self.fetch_file(entry["sha256"], entry["size_bytes"], target, progress)
        except Damaged as error:
            progress.say(f"note: a {kind} in the remote store is damaged ({error}); it is ignored")
            self._remove(self._manifest(kind, key))
            return None
        (out / MANIFEST).write_bytes(text)
        flush(out / MANIFEST)
        return manifest

    def send(self, folder: Path, manifest: dict[str, Any], progress: Progress) -> None:
        """Put an artefact there, unless it is. Raises RemoteFailed."""
        path = self._manifest(manifest["kind"], manifest["fingerprint"])
        if not _own_place().is_read_only and not parsed(self._read(path) or b""):
            for name, entry in manifest["files"].items():
                self.send_file(folder / name, entry["sha256"], progress)
            self._write(path, [(folder / MANIFEST).read_bytes()])

    def has(self, kind: str, key: str) -> bool:
        """Whether an artefact is there. Raises RemoteFailed."""
        return self._size(self._manifest(kind, key)) is not None

    def drop(self, kind: str, key: str) -> None:
        """Remove an artefact and its files, which no other has. Raises RemoteFailed."""
        if manifest := parsed(self._read(self._manifest(kind, key)) or b""):
            with self._asking() as place:
                place.fs.rm(self._path(kind, key[:KEY_CHARS]), recursive=True)
            for entry in manifest["files"].values():
                self._remove(self._path(FILES, entry["sha256"]))

    # -- files

    def fetch_file(self, sha256: str, size_bytes: int, target: Path, progress: Progress) -> None:
        """Bring a file.

        Raises RemoteFailed; Damaged: it is not there or has other bytes, and is removed.
        """
        shown = progress if size_bytes >= SHOW_BYTES else Silent()
        path, name = self._path(FILES, sha256), target.name
        with replacing(target) as temporary:
            with shown.task(f"fetching {name}", size_bytes, "B") as task, temporary.open("wb") as f:
                try:
                    digest = _copied(self._blocks(path), f.write, task.update)
                except FileNotFoundError:
                    raise Damaged(f"{name} is missing") from None
            if digest != sha256:
                self._remove(path)
                raise Damaged(name)

    def send_file(self, source: Path, sha256: str, progress: Progress) -> None:
        """Put a file there, unless it is. Raises RemoteFailed."""
        path, size_bytes = self._path(FILES, sha256), source.stat().st_size
        if self._size(path) == size_bytes:
            return
        shown = progress if size_bytes >= SHOW_BYTES else Silent()
        with shown.task(f"sending {source.name}", size_bytes, "B") as task, source.open("rb") as f:
            blocks = iter(lambda: f.read(BLOCK_BYTES), b"")
            if self._write(path, blocks, task.update) != sha256:
                self._remove(path)
                what = "this file is not any more what it was when it was made"
                raise ImatrixLabError(what, where=source, fix="remove it, and run again")

    def has_file(self, sha256: str, size_bytes: int) -> bool:
        """Whether a file is there. Raises RemoteFailed."""
        return self._size(self._path(FILES, sha256)) == size_bytes

    def remove(self) -> None:
        """Remove a part of it, with all that is in it. Raises RemoteFailed."""
        assert self.below
        with contextlib.suppress(FileNotFoundError), self._asking() as place:
            place.fs.rm(self._path(), recursive=True)

    def probe(self, name: str, text: str | None = None) -> str | None:
        """Return the text of that name, written before if it is given; None without one.

        Raises RemoteFailed.
        """
        path = self._path("probes", name)
        if text is not None:
            self._write(path, [text.encode()])
        found = self._read(path)
        return None if found is None else found.decode(errors="replace")

    # -- the place

    @contextlib.contextmanager
    def _asking(self) -> Iterator[_Place]:
        """Give the place; what its library raises becomes RemoteFailed, without secrets."""
        place = _own_place()
        try:
            place.open()
            yield place
        except (ImatrixLabError, FileNotFoundError):
            raise
        except Exception as error:
            raise _explained(error, place) from None

    def _path(self, *names: str) -> str:
        with self._asking() as place:
            return "/".join((place.root, *filter(None, (self.below, *names))))

    def _manifest(self, kind: str, key: str) -> str:
        return self._path(kind, key[:KEY_CHARS], MANIFEST)

    def _read(self, path: str) -> bytes | None:
        try:
            return b"".join(self._blocks(path))
        except FileNotFoundError:
            _own_place().answered()
            return None

    def _blocks(self, path: str) -> Iterator[bytes]:
        with self._asking() as place, place.fs.open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
        place.answered()

    def _size(self, path: str) -> int | None:
        try:
            with self._asking() as place:
                size_bytes = int(place.fs.info(path)["size"])
        except FileNotFoundError:
            return None
        place.answered()
        return size_bytes

    def _write(
        self, path: str, blocks: Iterable[bytes], on_bytes: Callable[[int], None] | None = None
    ) -> str:
        """Write a file; return the sha256 of what was written. Part of one is removed."""
        try:
            with self._asking() as place:
                if _has_folders(place.fs):
                    place.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                with place.fs.open(path, "wb") as file:
                    sha256 = _copied(blocks, file.write, on_bytes)
        except RemoteFailed as error:
            _own_place().is_read_only = not error.may_pass
            raise
        except BaseException:
            self._remove(path)
            raise
        place.answered()
        return sha256

    def _remove(self, path: str) -> None:
        """Remove a file, if it is there and we may."""
        with contextlib.suppress(Exception), self._asking() as place:
            place.fs.rm_file(path)


def _copied(
    blocks: Iterable[bytes],
    write: Callable[[bytes], Any],
    on_bytes: Callable[[int], None] | None = None,
) -> str:
    """Copy bytes; return their sha256."""
    digest, done = hashlib.sha256(), 0
    for block in blocks:
        interrupt.check()
        write(block)
        digest.update(block)
        done += len(block)
        if on_bytes:
            on_bytes(done)
    return digest.hexdigest()


def _is_inside(name: str) -> bool:
    """Whether this is the name of a file in a folder, whoever wrote it."""
    parts = PurePosixPath(name).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\\" not in name


def _has_folders(fs: Any) -> bool:
    return not _FOLDERS.isdisjoint([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def _explained(error: Exception, place: _Place) -> RemoteFailed:
    text = (str(error).splitlines() or [""])[0]
    for secret in sorted(place.secrets, key=len, reverse=True):
        text = text.replace(secret, "…")
    text = _USER.sub("…@", text)[:200]
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    if is_denied := bool(_DENIED.search(names)):
        what = f"the remote store denies access ({text or type(error).__name__})"
        fix = f"give credentials as its library takes them (S3: AWS_PROFILE), or unset {REMOTE}"
    else:
        what = f"the remote store does not answer ({type(error).__name__}: {text})"
        fix = "check the connection, then run again"
    ours = RemoteFailed(what, where=place.shown, fix=fix)
    ours.may_pass = not is_denied
    return ours
