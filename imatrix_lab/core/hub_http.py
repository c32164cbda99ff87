"""Requests to the Hugging Face Hub, and downloads from it into its own cache."""

import contextlib
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from imatrix_lab.core.files import disk_error, flush, need_room, sha256_file
from imatrix_lab.core.hub_cache import CachedRepo
from imatrix_lab.core.hub_errors import Unreachable, check_is_hub, explained
from imatrix_lab.core.names import readable
from imatrix_lab.core.progress import Progress, Task
from imatrix_lab.errors import DiskFull, FetchFailed, ImatrixLabError

LARGEST_HTTP_BYTES = 50_000_000_000
"""The Hub serves larger files over Xet only."""
BLOCK_BYTES = 1 << 20
TIMEOUT_S = 30.0
RETRY_S = (1.0, 2.0, 4.0, 8.0)
"""Waits before each retry; a try that received something starts over."""
WAIT_S_MAX = 120.0
"""How long to wait if the Hub asks for it."""
PART = ".imatrix-lab.incomplete"
"""Ends the name of an unfinished file: `hf cache prune` knows it by its last word."""

_RETRY = "run again: a download continues where it stopped"
_OTHER_DISK = "set HF_HUB_CACHE=/a/folder on another disk, or hf cache prune; then run again"
_HASH = re.compile("[0-9a-f]{40}([0-9a-f]{24})?")  # SHA-1 or sha256
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

Files = dict[str, dict[str, Any]]
"""name -> size_bytes, the sha256 if Git LFS knows it (else None), and its name among the blobs"""

T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit."""

    commit: str
    files: Files
    is_private: bool = False


def list_files(repo: str, revision: str) -> Listing:
    """Ask for the commit of a revision, and its files."""
    require_network()
    options: dict[str, Any] = {"files_metadata": True, "timeout": TIMEOUT_S}
    api = _api()

    def listed() -> Listing:
        info = api.model_info(repo, revision=revision, **options)
        files = (_file(sibling, repo) for sibling in info.siblings or [])
        named = {name: entry for name, entry in files if name}
        return Listing(_hash(info.sha, repo), named, bool(info.private))

    return ask(repo, revision, listed)


def _file(sibling: Any, repo: str) -> tuple[str, dict[str, Any]]:
    """Return name and facts of a file that the Hub lists; "" for a name that leads elsewhere."""
    name, lfs = PurePosixPath(sibling.rfilename), sibling.lfs
    size_bytes = lfs.size if lfs else sibling.size
    if type(size_bytes) is not int or size_bytes < 0:
        raise FetchFailed(f"the Hub lists no size for {readable(str(name))}", where=repo)
    sha256 = _hash(lfs.sha256, repo) if lfs else None
    entry = {"size_bytes": size_bytes, "sha256": sha256}
    entry["blob"] = sha256 or _hash(sibling.blob_id, repo)
    is_below = name.name and ".." not in name.parts and not name.is_absolute()
    return str(name) if is_below and str(name).isprintable() else "", entry


def _hash(value: Any, repo: str) -> str:
    """Return a hash; FetchFailed if it is none: hashes name files here, and could lead anywhere."""
    if not (isinstance(value, str) and _HASH.fullmatch(value)):
        what = f"unexpected answer from the Hub: {readable(repr(value)[:80])} in place of a hash"
        raise FetchFailed(what, where=repo)
    return value


def dataset_commit(repo: str, revision: str, timeout_s: float = TIMEOUT_S) -> str:
    """Ask for the commit of a data set's revision, for so many seconds at most."""
    require_network()
    api = _api()  # not within the seconds: on a slow disk it takes longer

    def commit() -> str:
        return _hash(api.dataset_info(repo, revision=revision, timeout=timeout_s).sha, repo)

    return ask(f"datasets/{repo}", revision, lambda: _within(timeout_s, commit))


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ValueError as error:  # it reads its settings then
        what = f"the Hub's library cannot read its settings: {error}"
        fix = "correct the variable that has this value (HF_HUB_ETAG_TIMEOUT), or unset it"
        raise FetchFailed(what, fix=fix) from error
    return HfApi(endpoint=endpoint())


def _within(seconds: float, call: Callable[[], str]) -> str:
    """Call within a time; the library's own time-out does not cover looking up a host's name."""
    results: list[str] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise ConnectionError(f"no answer in {seconds:g} s")
    return results[0]


def total_bytes(files: Files) -> int:
    """Return the sum of the files' sizes."""
    return sum(int(entry["size_bytes"]) for entry in files.values())


def download(cached: CachedRepo, commit: str, files: Files, progress: Progress) -> list[str]:
    """Put files into the Hub's cache, and return those that were fetched now and are checked."""
    snapshot = cached.snapshot(commit)
    missing = {name: entry for name, entry in files.items() if not (snapshot / name).exists()}
    with _errors_of(cached.folder):
        to_fetch = {n: e for n, e in missing.items() if not cached.blob(e["blob"]).exists()}
        present = sum(_bytes_at(_part(cached, entry)) for entry in to_fetch.values())
        if missing:
            snapshot.mkdir(parents=True, exist_ok=True)
        if to_fetch:
            total = total_bytes(to_fetch)
            need_room(cached.folder, max(total - present, 0), cached.name)
            with progress.task(f"fetching {cached.name}", total, "B") as task:
                _fetch(cached, commit, to_fetch, progress, task)
        links = [cached.link(cached.blob(e["blob"]), commit, n) for n, e in missing.items()]
        if not all(links):
            progress.say(f"no links on this disk: files lie in {snapshot} and are used from there")
    for name, entry in files.items():
        if _bytes_at(path := snapshot / name) != entry["size_bytes"]:
            what = f"{name} in the Hub's cache has {_bytes_at(path)} bytes, and the Hub lists"
            what += f" {entry['size_bytes']}"
            raise FetchFailed(what, where=path, fix=f"rm '{path.resolve()}', then run again")
    return list(to_fetch)


def _fetch(cached: CachedRepo, commit: str, files: Files, progress: Progress, task: Task) -> None:
    done = 0
    for name, entry in files.items():
        require_network()
        blob, part = cached.blob(entry["blob"]), _part(cached, entry)
        blob.parent.mkdir(parents=True, exist_ok=True)
        with cached.locked(entry["blob"]):
            # another program may have fetched it while we waited
            if not (blob.exists() or (cached.snapshot(commit) / name).exists()):
                if entry["size_bytes"] > LARGEST_HTTP_BYTES:
                    progress.say(f"{name} comes over Xet: if interrupted, it starts over")
                    _transfer_xet(cached.name, commit, name, part)
                else:
                    _transfer(cached.name, commit, name, entry["size_bytes"], part, task, done)
                _check(name, entry, part)
                flush(part)
                part.replace(blob)
        done += entry["size_bytes"]
        task.update(done)


def _part(cached: CachedRepo, entry: dict[str, Any]) -> Path:
    return cached.blob(f"{entry['blob']}{PART}")


@contextlib.contextmanager
def _errors_of(folder: Path) -> Iterator[None]:
    """Say what helps where the cache's disk is full or read-only."""
    try:
        yield
    except DiskFull as error:
        raise DiskFull(error.what, where=error.where, fix=_OTHER_DISK) from None
    except OSError as error:
        ours = disk_error(error, folder)
        if isinstance(ours, ImatrixLabError):
            raise type(ours)(ours.what, where=ours.where, fix=_OTHER_DISK) from error
        raise


def _transfer(
    repo: str, commit: str, name: str, size_bytes: int, part: Path, task: Task, before: int
) -> None:
    """Download the rest of a file, retrying as long as something is received."""
    if _bytes_at(part) > size_bytes:
        part.unlink()
    part.touch()
    waits = iter(RETRY_S)

    def stream() -> None:
        _stream(repo, commit, name, (part, size_bytes), lambda done: task.update(before + done))

    while (have := _bytes_at(part)) < size_bytes:
        try:
            ask(repo, commit, stream)
            if _bytes_at(part) <= have:
                raise FetchFailed(f"the Hub sends nothing of {name}", where=repo, fix=_RETRY)
        except Unreachable as error:
            if _bytes_at(part) > have:
                waits = iter(RETRY_S)
            wait_s = next(waits, None)
            if wait_s is None or not error.may_pass or error.wait_s > WAIT_S_MAX:
                raise
            task.update(before + _bytes_at(part), "the connection broke; trying again")
            time.sleep(max(wait_s, error.wait_s))


def _stream(
    repo: str, commit: str, name: str, to: tuple[Path, int], on_bytes: Callable[[int], None]
) -> None:
    """Append to a file from where it ends, up to its size and a block more.

    hf_hub_download would start over after an interrupt.
    """
    from huggingface_hub import constants, get_session, get_token, hf_hub_url, hf_raise_for_status

    part, size_bytes = to
    have = _bytes_at(part)
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    if not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and (token := get_token()):
        headers["Authorization"] = f"Bearer {token}"  # not sent on to another host
    url = hf_hub_url(repo, name, revision=commit, endpoint=endpoint())
    with (
        part.open("ab") as file,
        get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response,
    ):
        hf_raise_for_status(response)
        check_is_hub(response, repo)
        if response.status_code != 206:
            file.truncate(0)
            have = 0
        for block in response.iter_bytes(BLOCK_BYTES):
            file.write(block)
            have += len(block)
            on_bytes(have)
            if have > size_bytes:  # it may never end
                return


def _transfer_xet(repo: str, commit: str, name: str, part: Path) -> None:
    """Download with the library, which cannot continue; not into its cache: we hold its lock."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    folder = part.with_name(f".{part.name}.xet")
    options: dict[str, Any] = {"endpoint": endpoint(), "local_dir": folder}
    path = ask(repo, commit, lambda: hf_hub_download(repo, name, revision=commit, **options))
    Path(path).replace(part)
    shutil.rmtree(folder)


def _check(name: str, entry: dict[str, Any], part: Path) -> None:
    if _bytes_at(part) != entry["size_bytes"]:
        what = f"{name} has {_bytes_at(part)} bytes, and the Hub lists {entry['size_bytes']}"
    elif (hashed := _hashed(part, entry)) != entry["blob"]:
        kind = "sha256" if entry["sha256"] else "the hash"
        what = f"{name} has {kind} {hashed}, and the Hub lists {entry['blob']}"
    else:
        return
    part.unlink()
    raise FetchFailed(what, fix="run again: the bad file was deleted and will be fetched again")


def _hashed(part: Path, entry: dict[str, Any]) -> str:
    """Return the sha256 of a file in Git LFS, and what Git calls one outside of it."""
    if entry["sha256"]:
        return sha256_file(part)
    header = b"blob %d\0" % entry["size_bytes"]
    return hashlib.sha1(header + part.read_bytes(), usedforsecurity=False).hexdigest()


def _bytes_at(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def endpoint() -> str:
    """Return the Hub's address."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def require_network() -> None:
    """Raise `Unreachable` if HF_HUB_OFFLINE is set."""
    for name in _OFFLINE:
        if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise Unreachable(f"{name} is set", fix=f"unset {name} and run again")


def ask(repo: str, revision: str, call: Callable[[], T]) -> T:
    """Call the Hub's library; its errors are replaced by ours, without a link to the original."""
    _trust_own_certificates()
    try:
        return call()
    except Exception as error:
        ours = explained(error, repo, revision)
    raise ours


def _trust_own_certificates() -> None:
    """Let the Hub's library use the certificates that a user gave to other programs."""
    named = (os.environ.get(n, "") for n in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))
    path = next((path for path in named if Path(path).is_file()), "")
    if path and not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        os.environ["SSL_CERT_FILE"] = path
