"""Files of models on the Hugging Face Hub, in its own cache on this machine.

A revision is resolved to a commit. What is in the cache of that commit is used from there, and
what is missing is fetched into it (`core.hub_cache`); safetensors are converted into the store.
While the Hub is unreachable, the commit that the cache last saw of a revision is used; a file
named exactly at a pinned commit is not asked for again.
"""

import contextlib
import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from imatrix_lab.core import digests, hub_cache, process
from imatrix_lab.core.files import from_json, need_room
from imatrix_lab.core.format import size
from imatrix_lab.core.hub_cache import CachedRepo
from imatrix_lab.core.hub_errors import Unreachable
from imatrix_lab.core.hub_http import Files, Listing, download, list_files, total_bytes
from imatrix_lab.core.manifest import MANIFEST
from imatrix_lab.core.paths import pip_install
from imatrix_lab.core.progress import Progress, Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact, NotBuilt, Store
from imatrix_lab.errors import FetchFailed, ImatrixLabError, MissingTool, ToolFailed
from imatrix_lab.models import hub_choice
from imatrix_lab.models.hub_choice import Choice
from imatrix_lab.models.hub_spec import HubRef

CONVERT_EXTRA, CONVERTING = "imatrix_lab[convert]", ("torch", "transformers")
"""The extra that brings what llama.cpp's converter imports, and that."""
_BESIDE_WEIGHTS = ("*.json", "*.txt", "*.jinja", "*.model", "LICENSE*", "README.md")


@dataclass(frozen=True)
class Converter:
    """llama.cpp's convert_hf_to_gguf.py, beside its ``conversion/`` and ``gguf-py/``."""

    version: str
    script: Path


@dataclass(frozen=True)
class _Plan:
    """A commit, which of its files are used, and whether they are converted."""

    listing: Listing
    choice: Choice
    is_converted: bool = False

    def files(self) -> Files:
        return {name: self.listing.files[name] for name in self.choice.names}


def fetch(ref: HubRef, session: Session, converter: Converter | None) -> list[Path]:
    """Return a model's GGUF files, shards in order; without GGUF, its safetensors are converted.

    Raises UsageError unless one model matches; FetchFailed if the Hub is unreachable, refuses, or
    sends other bytes than it lists; MissingTool or ToolFailed about the converter.
    """

    def plan(listing: Listing) -> _Plan:
        return _of_model(ref, listing, converter)

    earlier = _converted_earlier(ref, session.store, converter)
    if earlier and earlier.manifest["inputs"]["commit"] == ref.revision:
        return _files_of(earlier)
    try:
        settled = _settle(ref, plan, session)
    except Unreachable:
        if not earlier:
            raise
        return _files_of(earlier)
    if settled.is_converted:
        assert converter is not None
        return _files_of(_converted(ref, settled, converter, session))
    return _download(ref, settled, session)


def check(ref: HubRef, store: Store) -> None:
    """Raise what `fetch` would, before anything is built or fetched.

    That the Hub is unreachable is left to `fetch`: it may be back by then.
    """
    any_converter = Converter("", Path())
    with contextlib.suppress(Unreachable):
        settled = _settle(
            ref, lambda ls: _of_model(ref, ls, any_converter), Session(store, Silent())
        )
        inputs = {"repo": ref.repo, "commit": settled.listing.commit}
        if settled.is_converted and not store.like("converted", inputs):
            _require_packages()


def fetch_imatrix(ref: HubRef, session: Session) -> Path:
    """Return an importance matrix on the Hub: the file that is named, else the only one."""
    settled = _settle(ref, lambda ls: _Plan(ls, hub_choice.of_imatrix(ref, ls)), session)
    [path] = _download(ref, settled, session)
    sha256_of(path, session)
    return path


def sha256_of(path: Path, session: Session) -> str:
    """Return the sha256 of a file in the Hub's cache; FetchFailed if the cache says another."""
    sha256 = digests.sha256_of(path, session)
    if (announced := hub_cache.announced_sha256(path)) not in ("", sha256):
        what = f"{path.name} is damaged in the Hub's cache: its sha256 is {sha256}, not {announced}"
        fix = f"rm {shlex.quote(str(path.resolve()))}, then run again"
        raise FetchFailed(what, where=path, fix=fix)
    return sha256


def origin_of(path: Path, repo: str) -> str:
    """Return the name of a fetched model, with its commit."""
    for folder in path.parents:
        if folder.parent.name == "snapshots":
            return str(HubRef(repo, folder.name, path.relative_to(folder).as_posix()))
    manifest = from_json(path.with_name(MANIFEST).read_text(encoding="utf-8"))
    return str(HubRef(repo, manifest["inputs"]["commit"]))


def _settle(ref: HubRef, plan: Callable[[Listing], _Plan], session: Session) -> _Plan:
    """Choose a commit and its files, asking the Hub only if needed."""
    cached = CachedRepo(hub_cache.default_root(), ref.repo)
    local = [_in_cache(cached, commit) for commit in cached.commits(ref.revision)]
    for listing in local:
        if listing.commit == ref.revision and hub_choice.is_exact(ref, listing.files):
            return plan(listing)
    try:
        newest = list_files(ref.repo, ref.revision or "main")
    except Unreachable as error:
        reasons = []
        for listing in local:
            try:
                settled = plan(listing)
            except ImatrixLabError as reason:
                reasons.append(reason.what)
                continue
            commit = f"the last fetched commit {listing.commit} of {ref.repo}"
            session.progress.say(f"{error.what}: using {commit}")
            return settled
        what = f"{error.what}, and nothing fetched earlier answers {ref}"
        what = ": ".join([what, *reasons[:1]])
        raise Unreachable(what, where=ref.repo, fix=error.fix) from None
    except FetchFailed as error:
        if local:
            error.fix = f"{error.fix}; or HF_HUB_OFFLINE=1, to use what is in the Hub's cache"
        raise
    return plan(newest)


def _in_cache(cached: CachedRepo, commit: str) -> Listing:
    """Return what the Hub's cache has of a commit."""
    files: Files = {}
    for name, path in cached.files(commit).items():
        sha256 = hub_cache.announced_sha256(path) or None
        blob = hub_cache.blob_of(path)
        files[name] = {"size_bytes": path.stat().st_size, "sha256": sha256, "blob": blob}
    return Listing(commit, files)


def _of_model(ref: HubRef, listing: Listing, converter: Converter | None) -> _Plan:
    """Choose the files, and whether they are converted."""
    top = [n for n in listing.files if "/" not in n]
    weights = [n for n in top if fnmatchcase(n, "model*.safetensors") and "config.json" in top]
    if ref.pattern or not weights or any(n.lower().endswith(".gguf") for n in listing.files):
        return _Plan(listing, hub_choice.of_model(ref, listing, bool(weights)))
    if not converter:
        what = "these safetensors need llama.cpp's converter, which is not built"
        where = f"{ref.repo} at commit {listing.commit}"
        raise MissingTool(what, where=where, fix="imatrix-lab toolchain build")
    beside = [n for n in top if any(fnmatchcase(n, p) for p in _BESIDE_WEIGHTS)]
    return _Plan(listing, Choice(tuple(sorted({*weights, *beside}))), True)


def _download(ref: HubRef, plan: _Plan, session: Session) -> list[Path]:
    """Return the chosen files in the Hub's cache, fetched if they are not there."""
    cached = CachedRepo(hub_cache.default_root(), ref.repo)
    commit, files = plan.listing.commit, plan.files()
    paths = [cached.snapshot(commit) / name for name in files]
    if session.store.read_only and not all(path.exists() for path in paths):
        raise NotBuilt("hub")
    if plan.choice.why:
        session.progress.say(plan.choice.why)
    for name in download(cached, commit, files, session.progress):
        if sha256 := files[name]["sha256"]:
            digests.remember(cached.snapshot(commit) / name, sha256, session)
    cached.remember(ref.revision or "main", commit)
    return paths


def _converted(ref: HubRef, plan: _Plan, converter: Converter, session: Session) -> Artifact:
    """Return the GGUF file that safetensors are converted to, from the store or made now."""
    name = ref.repo.partition("/")[2]
    files = {n: {k: e[k] for k in ("size_bytes", "sha256")} for n, e in plan.files().items()}

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        _require_packages()
        need_room(out, total_bytes(plan.files()), name)
        paths = _download(ref, plan, session)
        folder = _alone(paths, scratch / name)
        target = out / f"{name}-{{OUTTYPE}}.gguf"  # the converter fills it in
        _convert(converter, folder, target, scratch / "convert.log", session.progress)
        session.progress.say(
            f"the safetensors stay in the Hub's cache; to free {size(total_bytes(plan.files()))}:"
            f" hf cache rm model/{ref.repo}"
        )
        return {}

    inputs = {"repo": ref.repo, "commit": plan.listing.commit, "files": files}
    inputs |= {"toolchain": converter.version, "outtype": "auto"}
    label = ref.repo.replace("/", "--")
    return session.store.get("converted", label, inputs, build, session.progress)


def _alone(paths: list[Path], folder: Path) -> Path:
    """Return a folder with these files and no others, which might be code; as links."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for path in paths:
            (folder / path.name).symlink_to(path)
    except OSError:  # no links on this disk
        return paths[0].parent
    return folder


def _converted_earlier(ref: HubRef, store: Store, converter: Converter | None) -> Artifact | None:
    """Return what was converted of a request: of its commit, or of the one the cache knows."""
    if ref.pattern or not converter:
        return None
    commits = CachedRepo(hub_cache.default_root(), ref.repo).commits(ref.revision)
    inputs = {"repo": ref.repo, "toolchain": converter.version}
    for commit in [*commits, ref.revision]:
        if commit and (artifact := store.like("converted", {**inputs, "commit": commit})):
            return artifact
    return None


def _files_of(artifact: Artifact) -> list[Path]:
    return sorted(artifact.path / file for file in artifact.manifest["files"])


def missing_packages() -> list[str]:
    """Return which packages of `CONVERT_EXTRA` are not installed."""
    return [name for name in CONVERTING if importlib.util.find_spec(name) is None]


def _require_packages() -> None:
    missing = missing_packages()
    if missing:
        fix = f"{pip_install(CONVERT_EXTRA)}, or name a repository with GGUF files"
        raise MissingTool(f"converting safetensors needs {' and '.join(missing)}", fix=fix)


def _convert(
    converter: Converter, folder: Path, target: Path, log: Path, progress: Progress
) -> None:
    log.unlink(missing_ok=True)
    options = ["--outfile", str(target), "--outtype", "auto"]
    argv = [sys.executable, str(converter.script), str(folder), *options]
    # Nothing is to be fetched any more, neither files nor code; so no token is needed either.
    env = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": ""}
    with progress.task(f"converting {folder.name}", 100, "%") as task:

        def on_output(text: str) -> None:
            if shares := re.findall(r"Writing: +(\d+)%", text):
                task.update(int(shares[-1]))

        try:
            process.run(argv, log=log, env=env, on_output=on_output)
        except ToolFailed as error:
            what = f"{folder.name} cannot be converted to GGUF: {error.what}"
            fix = "read the log; the pinned llama.cpp may not support this architecture"
            raise ToolFailed(what, tail=error.tail, log=log, fix=fix) from error
