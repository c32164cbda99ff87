"""Models on the Hugging Face Hub: ``hf:org/repo[@revision][:file-or-glob]`` -> local GGUF.

A revision is resolved to a commit, and each artefact keeps the list of files at its commit. So
the choice among them can be made again without the network: always for a pinned commit, and for
the last fetched one while the Hub is out of reach.

Errors of the Hub's library hold the request, and the request holds the token. They are not passed
on, not even as a cause: ours say the same in words of our own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from imatrix_lab import proc
from imatrix_lab.errors import FetchFailed, ImatrixLabError, MissingTool, ToolFailed, UsageError
from imatrix_lab.progress import Progress, Task
from imatrix_lab.store import Artifact, Store, need_room, sha256_file

LARGEST_HTTP_BYTES = 50_000_000_000
"""The Hub gives out larger files over Xet only."""

BLOCK_BYTES = 1 << 20
TIMEOUT_S = 30.0
RETRY_S = (1.0, 2.0, 4.0, 8.0)
"""How long to wait before each new try; a try that brought something starts over."""

_SPEC = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[^@:\s]+))?(?::(?P<pattern>[^:\s/][^:]*))?",
    re.ASCII,
)
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")
_BESIDE_WEIGHTS = ("*.json", "*.txt", "*.jinja", "*.model", "LICENSE*", "README.md")

Files = dict[str, dict[str, Any]]
"""name -> size_bytes, and the sha256 if Git LFS knows it (else None)"""

T = TypeVar("T")


@dataclass(frozen=True)
class HubRef:
    """What was asked for: a repository, a revision of it, and which of its files."""

    repo: str
    revision: str | None = None
    pattern: str | None = None

    def __str__(self) -> str:
        """Return it as it is written on the command line."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f":{self.pattern}" if self.pattern else "")


@dataclass(frozen=True)
class Converter:
    """llama.cpp's convert_hf_to_gguf.py, beside its ``conversion/`` and ``gguf-py/``."""

    version: str
    script: Path


@dataclass(frozen=True)
class _Listing:
    """The files of a repository at a commit."""

    commit: str
    files: Files
    license: str | None


_Plan = tuple[str, dict[str, Any]]  # the store's kind and inputs of what answers a request


class _Unreachable(FetchFailed):
    """The Hub cannot be asked now."""


def parse(spec: str) -> HubRef:
    """Return what ``hf:org/repo[@revision][:file-or-glob]`` names; anything else is UsageError."""
    match = _SPEC.fullmatch(spec)
    if not match or ".." in match["repo"] or "--" in match["repo"]:
        raise UsageError(
            f"not a model on the Hub: {spec}",
            fix="write hf:org/repo[@revision][:file-or-glob],"
            " for example 'hf:org/model-GGUF@main:*Q8_0*.gguf'",
        )
    revision = match["revision"]
    if revision and re.fullmatch("[0-9A-Fa-f]{40}", revision):
        revision = revision.lower()
    return HubRef(match["repo"], revision, match["pattern"])


def fetch(ref: HubRef, store: Store, progress: Progress, converter: Converter | None) -> list[Path]:
    """Return a model's GGUF files, shards in order; without GGUF, its safetensors are converted.

    Raises
    ------
    UsageError : no model fits, or several do.
    FetchFailed : the Hub refuses, is out of reach, or sent something else than it lists.
    MissingTool : a conversion is due, and the converter or what it imports is not there.
    ToolFailed : the converter failed.
    """

    def plan(listing: _Listing) -> _Plan:
        if _models(listing.files) or ref.pattern or not _weights(listing.files):
            return _gguf_plan(ref, listing)
        return _conversion_plan(ref, converter, listing)

    artifact = _get(ref, store, progress, plan, converter)
    return sorted(artifact.path / n for n in artifact.manifest["files"] if n.endswith(".gguf"))


def fetch_gguf(ref: HubRef, store: Store, progress: Progress) -> Artifact:
    """Return the artefact with one GGUF model, all its shards, named as on the Hub; see `fetch`."""
    return _get(ref, store, progress, partial(_gguf_plan, ref), None)


def fetch_converted(
    ref: HubRef, store: Store, progress: Progress, converter: Converter
) -> Artifact:
    """Return the artefact with ``<repo>-<OUTTYPE>.gguf``, made from safetensors; see `fetch`."""
    return _get(ref, store, progress, partial(_conversion_plan, ref, converter), converter)


def _get(
    ref: HubRef,
    store: Store,
    progress: Progress,
    plan: Callable[[_Listing], _Plan],
    converter: Converter | None,
) -> Artifact:
    listing, (kind, inputs) = _settle(ref, store, progress, plan)
    files: Files = inputs["files"]
    name = ref.repo.partition("/")[2]

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        folder = scratch / "model" / name
        if kind == "converted" and converter:
            _need_packages()
            _download(ref, listing.commit, files, folder, progress, then_bytes=_sum(files))
            target = out / f"{name}-{{OUTTYPE}}.gguf"  # the converter fills it in
            _convert(converter, folder, target, scratch / "convert.log", progress)
        else:
            _download(ref, listing.commit, files, folder, progress)
            for file in files:
                (out / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).replace(out / file)
        return {
            "revision": ref.revision or "main",
            "license": listing.license,
            "repo_files": listing.files,
        }

    return store.get(kind, ref.repo.replace("/", "--"), inputs, build, progress)


def _settle(
    ref: HubRef, store: Store, progress: Progress, plan: Callable[[_Listing], _Plan]
) -> tuple[_Listing, _Plan]:
    """Decide on a commit and on what is wanted of it, asking the Hub only if that is needed."""
    earlier = _earlier(ref, store)
    for listing in earlier:
        if listing.commit == ref.revision:
            return listing, plan(listing)
    try:
        listing = _ask_listing(ref)
        return listing, plan(listing)
    except _Unreachable as error:
        reason = error
    for listing in earlier:
        with contextlib.suppress(ImatrixLabError):
            kind, inputs = plan(listing)
            if store.find(kind, inputs):
                progress.say(
                    f"{reason.what}: using the last fetched commit {listing.commit} of {ref.repo}"
                )
                return listing, (kind, inputs)
    raise FetchFailed(
        f"{reason.what}, and nothing fetched earlier answers {ref}", where=ref.repo, fix=reason.fix
    )


def _earlier(ref: HubRef, store: Store) -> list[_Listing]:
    """Return what the store remembers of this repository and revision, last used first."""
    found = []
    for artifact in store.artifacts():
        inputs, facts = artifact.manifest["inputs"], artifact.facts
        if inputs.get("repo") == ref.repo and "repo_files" in facts:
            commit = inputs["commit"]
            if ref.revision in (None, facts["revision"], commit):
                listing = _Listing(commit, facts["repo_files"], facts["license"])
                found.append((artifact.last_used_s(), listing))
    return [listing for _, listing in sorted(found, key=lambda f: f[0], reverse=True)]


def _ask_listing(ref: HubRef) -> _Listing:
    _need_network()
    from huggingface_hub import HfApi

    info = _ask(
        ref,
        lambda: HfApi(endpoint=_endpoint()).model_info(
            ref.repo, revision=ref.revision, files_metadata=True, timeout=TIMEOUT_S
        ),
    )
    files: Files = {}
    for sibling in info.siblings or []:
        name, lfs = PurePosixPath(sibling.rfilename), sibling.lfs
        size_bytes = lfs.size if lfs else sibling.size
        if size_bytes is None:
            raise FetchFailed(f"the Hub does not tell the size of {name}", where=ref.repo)
        if ".." not in name.parts and not name.is_absolute():
            files[str(name)] = {"size_bytes": size_bytes, "sha256": lfs.sha256 if lfs else None}
    card = info.card_data
    return _Listing(str(info.sha), files, card.get("license") if card else None)


def _models(files: Files) -> dict[str, list[str]]:
    """Return the GGUF models: the first file's name -> those of its files that are there."""
    models: dict[str, list[str]] = {}
    for name in sorted(files):
        base = PurePosixPath(name).name.lower()
        if base.endswith(".gguf") and "mmproj" not in base and "imatrix" not in base:
            models.setdefault(_first_shard(name), []).append(name)
    return models


def _first_shard(name: str) -> str:
    shard = _SHARD.fullmatch(name)
    return f"{shard['stem']}-00001-of-{shard['count']}.gguf" if shard else name


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(PurePosixPath(name).name, pattern)


def _gguf_plan(ref: HubRef, listing: _Listing) -> _Plan:
    """Choose the one model that is meant, with all its shards."""
    models = _models(listing.files)
    where = f"{ref.repo} at commit {listing.commit}"
    if not models:
        fix = "name a repository with GGUF or safetensors files"
        if _weights(listing.files):
            fix = f"leave out the file, and the safetensors are converted: hf:{ref.repo}"
        raise UsageError("there is no GGUF model in this repository", where=where, fix=fix)
    fitting = list(models)
    if pattern := ref.pattern:
        fitting = [key for key in models if key == _first_shard(pattern)] or [
            key for key, names in models.items() if any(_matches(n, pattern) for n in names)
        ]
    if len(fitting) != 1:
        shown = fitting or list(models)
        listed = [f"\n    {key}  {_size(listing.files, models[key])}" for key in shown]
        what = f"{len(fitting)} models fit" if fitting else "no model fits"
        example = HubRef(ref.repo, ref.revision, shown[0])
        raise UsageError(
            f"{what} {ref}; there {'is' if len(shown) == 1 else 'are'}" + "".join(listed),
            where=where,
            fix=f"--model '{example}'",
        )
    names = models[fitting[0]]
    if shard := _SHARD.fullmatch(fitting[0]):
        count = int(shard["count"])
        whole = [f"{shard['stem']}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
        if missing := sorted(set(whole) - set(names)):
            raise FetchFailed(
                f"the split model lacks {len(missing)} of {count} files: {', '.join(missing[:3])}",
                where=where,
                fix="choose another file or revision, or tell the publisher",
            )
        names = whole
    return "hub", _inputs(ref, listing, names)


def _conversion_plan(ref: HubRef, converter: Converter | None, listing: _Listing) -> _Plan:
    weights = _weights(listing.files)
    where = f"{ref.repo} at commit {listing.commit}"
    if not weights:
        raise UsageError("there are no model*.safetensors with a config.json", where=where)
    if not converter:
        raise MissingTool(
            "these safetensors need llama.cpp's converter, which is not built",
            where=where,
            fix="imatrix-lab doctor",
        )
    beside = [
        n for n in listing.files if "/" not in n and any(fnmatchcase(n, p) for p in _BESIDE_WEIGHTS)
    ]
    inputs = _inputs(ref, listing, sorted({*weights, *beside}))
    return "converted", {**inputs, "toolchain": converter.version, "outtype": "auto"}


def _weights(files: Files) -> list[str]:
    """Return the safetensors that the converter reads; none unless a config is beside them."""
    return [
        n
        for n in files
        if fnmatchcase(n, "model*.safetensors") and "/" not in n and "config.json" in files
    ]


def _inputs(ref: HubRef, listing: _Listing, names: list[str]) -> dict[str, Any]:
    files = {name: listing.files[name] for name in names}
    return {"repo": ref.repo, "commit": listing.commit, "files": files}


def _sum(files: Files) -> int:
    return sum(int(entry["size_bytes"]) for entry in files.values())


def _size(files: Files, names: list[str]) -> str:
    mib = _sum({name: files[name] for name in names}) / 2**20
    return f"{mib / 1024:.2f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"


def _download(
    ref: HubRef, commit: str, files: Files, folder: Path, progress: Progress, then_bytes: int = 0
) -> None:
    """Bring files into a folder, where a file is whole and a ``.part`` is not."""
    folder.mkdir(parents=True, exist_ok=True)
    total, done = _sum(files), 0
    here = sum(_bytes_at(folder / name) + _bytes_at(folder / f"{name}.part") for name in files)
    need_room(folder, max(total - here, 0) + then_bytes, ref.repo)
    with progress.task(f"fetching {ref.repo}", total, "bytes") as task:
        for name, entry in files.items():
            part = folder / f"{name}.part"
            if not (folder / name).exists():
                _need_network()
                part.parent.mkdir(parents=True, exist_ok=True)
                if entry["size_bytes"] > LARGEST_HTTP_BYTES:
                    progress.say(f"{name} comes over Xet: if interrupted, it starts over")
                    _ask(ref, partial(_transfer_xet, ref.repo, commit, name, part))
                else:
                    _transfer(ref, commit, name, entry["size_bytes"], part, task, done)
                _check(name, entry, part)
                part.replace(folder / name)
            done += entry["size_bytes"]
            task.update(done)


def _transfer(
    ref: HubRef, commit: str, name: str, size_bytes: int, part: Path, task: Task, before: int
) -> None:
    """Bring the rest of a file, trying again while tries bring something."""
    if _bytes_at(part) > size_bytes:
        part.unlink()
    part.touch()
    waits = iter(RETRY_S)
    stream = partial(_stream, ref.repo, commit, name, part, lambda done: task.update(before + done))
    while (have := _bytes_at(part)) < size_bytes:
        try:
            _ask(ref, stream)
            if _bytes_at(part) <= have:
                raise FetchFailed(f"the Hub sends nothing of {name}", where=ref.repo, fix=_AGAIN)
        except _Unreachable:
            if _bytes_at(part) > have:
                waits = iter(RETRY_S)
            wait_s = next(waits, None)
            if wait_s is None:
                raise
            task.update(before + _bytes_at(part), "the connection broke; trying again")
            time.sleep(wait_s)


def _stream(repo: str, commit: str, name: str, part: Path, on_bytes: Callable[[int], None]) -> None:
    """Append to a file from where it ends. (hf_hub_download drops what it has when interrupted.)"""
    from huggingface_hub import constants, get_session, get_token, hf_hub_url, hf_raise_for_status

    have = _bytes_at(part)
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    if not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and (token := get_token()):
        headers["Authorization"] = f"Bearer {token}"  # not sent on to another host
    url = hf_hub_url(repo, name, revision=commit, endpoint=_endpoint())
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
    folder = part.with_name(f".{part.name}.xet")
    whole = hf_hub_download(repo, name, revision=commit, endpoint=_endpoint(), local_dir=folder)
    Path(whole).replace(part)


def _check(name: str, entry: dict[str, Any], part: Path) -> None:
    what = None
    if _bytes_at(part) != entry["size_bytes"]:
        what = f"{name} has {_bytes_at(part)} bytes, and the Hub lists {entry['size_bytes']}"
    elif entry["sha256"] and (found := sha256_file(part)) != entry["sha256"]:
        what = f"{name} has sha256 {found}, and the Hub lists {entry['sha256']}"
    if what:
        part.unlink()
        raise FetchFailed(what, fix="run again: the bad file is deleted and will be fetched anew")


def _bytes_at(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _need_packages() -> None:
    missing = [n for n in ("torch", "transformers") if importlib.util.find_spec(n) is None]
    if missing:
        raise MissingTool(
            f"converting safetensors needs {' and '.join(missing)}",
            fix="pip install 'imatrix_lab[convert]', or name a repository with GGUF files",
        )


def _convert(
    converter: Converter, folder: Path, target: Path, log: Path, progress: Progress
) -> None:
    log.unlink(missing_ok=True)
    argv = [sys.executable, str(converter.script), str(folder)]
    argv += ["--outfile", str(target), "--outtype", "auto"]
    # Nothing is to be fetched any more, neither files nor code; so no token is needed either.
    env = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": ""}
    with progress.task(f"converting {folder.name}", 100, "%") as task:

        def on_output(text: str) -> None:
            if shares := re.findall(r"Writing: +(\d+)%", text):
                task.update(int(shares[-1]))

        try:
            proc.run(argv, log=log, env=env, on_output=on_output)
        except ToolFailed as error:
            raise ToolFailed(
                f"{folder.name} cannot be converted to GGUF: {error.what}",
                argv=argv,
                returncode=error.returncode,
                tail=error.tail,
                log=log,
                fix="read the log; the pinned llama.cpp may not support this architecture",
            ) from error


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _need_network() -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise _Unreachable("HF_HUB_OFFLINE is set", fix="unset HF_HUB_OFFLINE and run again")


_LIBRARIES = {"huggingface_hub", "httpx", "httpx2", "hf_xet"}
_AGAIN = "check the connection, then run again: a download goes on where it stopped"


def _ask(ref: HubRef, call: Callable[[], T]) -> T:
    """Call the Hub's library; what it raises becomes ours, with no link to the original."""
    try:
        return call()
    except Exception as error:
        ours = _explained(error, ref)
    raise ours


def _explained(error: Exception, ref: HubRef) -> Exception:
    from huggingface_hub import errors

    http_error = errors.HfHubHTTPError.__bases__[0]  # of httpx, or of its successor
    name, library = type(error).__name__, type(error).__module__.partition(".")[0]
    page = f"https://huggingface.co/{ref.repo}"
    login = f"accept the licence at {page}, then `hf auth login` or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    what, fix, kind = "", _AGAIN, FetchFailed
    if isinstance(error, errors.RevisionNotFoundError):
        what = f"{ref.repo} has no revision {ref.revision or 'main'} (HTTP {status})"
        fix = f"choose one of those at {page}/tree/main"
    elif isinstance(error, errors.RepositoryNotFoundError) and not isinstance(
        error, errors.GatedRepoError
    ):
        what = f"the Hub shows no model {ref.repo} (revision {ref.revision or 'main'})"
        fix = f"check the spelling; if it is gated or private, {login}"
    elif status in (401, 403):
        what, fix = f"the Hub does not give you the files of {ref.repo} (HTTP {status})", login
    elif status == 404:
        what = f"a file of {ref.repo}, revision {ref.revision or 'main'}, is not there (HTTP 404)"
    elif isinstance(error, (http_error, ConnectionError, errors.LocalEntryNotFoundError)):
        whose = " that HF_ENDPOINT names" if os.environ.get("HF_ENDPOINT") else ""
        what = f"the Hub{whose} cannot be reached ({f'HTTP {status}' if status else name})"
        kind = _Unreachable
    elif library in _LIBRARIES or isinstance(error, ValueError):
        what = f"the Hub, or the way to it, does something unexpected ({name})"
    return kind(what, where=ref.repo, fix=fix) if what else error
