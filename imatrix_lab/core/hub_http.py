"""Requests to the Hugging Face Hub, and downloads from it.

Errors of the Hub's library hold the request, and the request holds the token. So they are never
passed on, not even as a cause, but replaced by our own.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from imatrix_lab.core.files import need_room, sha256_file
from imatrix_lab.core.progress import Progress, Task
from imatrix_lab.errors import FetchFailed

LARGEST_HTTP_BYTES = 50_000_000_000
"""The Hub serves larger files over Xet only."""
BLOCK_BYTES = 1 << 20
TIMEOUT_S = 30.0
RETRY_S = (1.0, 2.0, 4.0, 8.0)
"""Waits before each retry; a try that received something starts over."""

_LIBRARIES = {"huggingface_hub", "httpx", "httpx2", "hf_xet"}
_RETRY = "check the connection, then run again: a download continues where it stopped"

Files = dict[str, dict[str, Any]]
"""name -> size_bytes, and the sha256 if Git LFS knows it (else None)"""

T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit."""

    commit: str
    files: Files
    license: str | None


class Unreachable(FetchFailed):
    """The Hub cannot be reached."""


def list_files(repo: str, revision: str) -> Listing:
    """Ask for the commit of a revision, and its files."""
    require_network()
    from huggingface_hub import HfApi

    options: dict[str, Any] = {"files_metadata": True, "timeout": TIMEOUT_S}
    api = HfApi(endpoint=endpoint())
    info = ask(repo, revision, lambda: api.model_info(repo, revision=revision, **options))
    files: Files = {}
    for sibling in info.siblings or []:
        name, lfs = PurePosixPath(sibling.rfilename), sibling.lfs
        size_bytes = lfs.size if lfs else sibling.size
        if size_bytes is None:
            raise FetchFailed(f"the Hub lists no size for {name}", where=repo)
        if ".." not in name.parts and not name.is_absolute():
            files[str(name)] = {"size_bytes": size_bytes, "sha256": lfs.sha256 if lfs else None}
    card = info.card_data
    return Listing(str(info.sha), files, card.get("license") if card else None)


def total_bytes(files: Files) -> int:
    """Return the sum of the files' sizes."""
    return sum(int(entry["size_bytes"]) for entry in files.values())


def download(
    repo: str, commit: str, files: Files, folder: Path, progress: Progress, then_bytes: int = 0
) -> None:
    """Download files into a folder, and leave room for `then_bytes` on the disk.

    An unfinished file is called ``.part``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total, done = total_bytes(files), 0
    present = sum(_bytes_at(folder / name) + _bytes_at(folder / f"{name}.part") for name in files)
    need_room(folder, max(total - present, 0) + then_bytes, repo)
    with progress.task(f"fetching {repo}", total, "B") as task:
        for name, entry in files.items():
            part = folder / f"{name}.part"
            if not (folder / name).exists():
                require_network()
                part.parent.mkdir(parents=True, exist_ok=True)
                if entry["size_bytes"] > LARGEST_HTTP_BYTES:
                    progress.say(f"{name} comes over Xet: if interrupted, it starts over")
                    _transfer_xet(repo, commit, name, part)
                else:
                    _transfer(repo, commit, name, entry["size_bytes"], part, task, done)
                _check(name, entry, part)
                part.replace(folder / name)
            done += entry["size_bytes"]
            task.update(done)


def _transfer(
    repo: str, commit: str, name: str, size_bytes: int, part: Path, task: Task, before: int
) -> None:
    """Download the rest of a file, retrying as long as something is received."""
    if _bytes_at(part) > size_bytes:
        part.unlink()
    part.touch()
    waits = iter(RETRY_S)

    def stream() -> None:
        _stream(repo, commit, name, part, lambda done: task.update(before + done))

    while (have := _bytes_at(part)) < size_bytes:
        try:
            ask(repo, commit, stream)
            if _bytes_at(part) <= have:
                raise FetchFailed(f"the Hub sends nothing of {name}", where=repo, fix=_RETRY)
        except Unreachable:
            if _bytes_at(part) > have:
                waits = iter(RETRY_S)
            if (wait_s := next(waits, None)) is None:
                raise
            task.update(before + _bytes_at(part), "the connection broke; trying again")
            time.sleep(wait_s)


def _stream(repo: str, commit: str, name: str, part: Path, on_bytes: Callable[[int], None]) -> None:
    """Append to a file from where it ends; hf_hub_download would start over after an interrupt."""
    from huggingface_hub import constants, get_session, get_token, hf_hub_url, hf_raise_for_status

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
        if response.status_code != 206:
            file.truncate(0)
            have = 0
        for block in response.iter_bytes(BLOCK_BYTES):
            file.write(block)
            have += len(block)
            on_bytes(have)


def _transfer_xet(repo: str, commit: str, name: str, part: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    options: dict[str, Any] = {"endpoint": endpoint()}
    options["local_dir"] = part.with_name(f".{part.name}.xet")
    path = ask(repo, commit, lambda: hf_hub_download(repo, name, revision=commit, **options))
    Path(path).replace(part)


def _check(name: str, entry: dict[str, Any], part: Path) -> None:
    if _bytes_at(part) != entry["size_bytes"]:
        what = f"{name} has {_bytes_at(part)} bytes, and the Hub lists {entry['size_bytes']}"
    elif entry["sha256"] and (sha256 := sha256_file(part)) != entry["sha256"]:
        what = f"{name} has sha256 {sha256}, and the Hub lists {entry['sha256']}"
    else:
        return
    part.unlink()
    raise FetchFailed(what, fix="run again: the bad file was deleted and will be fetched again")


def _bytes_at(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def endpoint() -> str:
    """Return the Hub's address."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def login(repo: str) -> str:
    """Return how to get access to a gated repository."""
    page = f"https://huggingface.co/{repo}"
    return f"accept the licence at {page}, then `hf auth login` or set HF_TOKEN"


def require_network() -> None:
    """Raise `Unreachable` if HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise Unreachable("HF_HUB_OFFLINE is set", fix="unset HF_HUB_OFFLINE and run again")


def ask(repo: str, revision: str, call: Callable[[], T]) -> T:
    """Call the Hub's library; its errors are replaced by ours, without a link to the original."""
    try:
        return call()
    except Exception as error:
        ours = _explained(error, repo, revision)
    raise ours


def _explained(error: Exception, repo: str, revision: str) -> Exception:
    from huggingface_hub import errors

    http_error = errors.HfHubHTTPError.__bases__[0]  # of httpx, or of its successor
    name, library = type(error).__name__, type(error).__module__.partition(".")[0]
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    fix, error_class = _RETRY, FetchFailed
    if isinstance(error, errors.RevisionNotFoundError):
        what = f"{repo} has no revision {revision} (HTTP {status})"
        fix = f"choose one at https://huggingface.co/{repo}/tree/main"
    elif isinstance(error, errors.RepositoryNotFoundError) and not isinstance(
        error, errors.GatedRepoError
    ):
        kind = "data set" if repo.startswith("datasets/") else "model"
        what = f"the Hub shows no {kind} {repo} (revision {revision})"
        fix = f"check the spelling; if it is gated or private, {login(repo)}"
    elif status in (401, 403):
        what, fix = f"the Hub denies access to the files of {repo} (HTTP {status})", login(repo)
    elif status == 404:
        what = f"a file of {repo}, revision {revision}, is missing (HTTP 404)"
    elif isinstance(error, (http_error, ConnectionError, errors.LocalEntryNotFoundError)):
        named = " in HF_ENDPOINT" if os.environ.get("HF_ENDPOINT") else ""
        what = f"the Hub{named} cannot be reached ({f'HTTP {status}' if status else name})"
        error_class = Unreachable
    elif library in _LIBRARIES or isinstance(error, ValueError):
        what = f"unexpected answer from the Hub or a proxy ({name})"
    else:
        return error
    return error_class(what, where=repo, fix=fix)
