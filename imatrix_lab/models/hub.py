"""Models on the Hugging Face Hub: ``hf:org/repo[@revision][:file-or-glob]`` -> local GGUF.

A revision is resolved to a commit, and each artefact keeps the list of files at its commit. So a
file can be chosen again without the network: always for a pinned commit, and while the Hub is
unreachable for a commit fetched earlier under the same revision.
"""

import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from imatrix_lab.core import process
from imatrix_lab.core.files import canonical_json, write_whole
from imatrix_lab.core.format import size
from imatrix_lab.core.hub_http import Files, Listing, Unreachable, download, list_files, total_bytes
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact, Store
from imatrix_lab.errors import FetchFailed, ImatrixLabError, MissingTool, ToolFailed, UsageError

REFS = "hub-refs.json"
"""In the store's root: ``repo@revision`` -> the commits fetched under that name."""

_SPEC = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[^@:\s]+))?(?::(?P<pattern>[^:\s/][^:]*))?",
    re.ASCII,
)
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf\Z")
_BESIDE_WEIGHTS = ("*.json", "*.txt", "*.jinja", "*.model", "LICENSE*", "README.md")

_Plan = tuple[Listing, str, dict[str, Any]]
"""A repository's files, and kind and inputs of the artefact that answers a request."""


@dataclass(frozen=True)
class HubRef:
    """A requested model: a repository, a revision of it, and which of its files."""

    repo: str
    revision: str | None = None
    pattern: str | None = None

    def name(self) -> str:
        """Return repository and revision."""
        return f"{self.repo}@{self.revision or 'main'}"

    def __str__(self) -> str:
        """Return it as written on the command line."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f":{self.pattern}" if self.pattern else "")


@dataclass(frozen=True)
class Converter:
    """llama.cpp's convert_hf_to_gguf.py, beside its ``conversion/`` and ``gguf-py/``."""

    version: str
    script: Path


def parse(spec: str) -> HubRef:
    """Return the parts of ``hf:org/repo[@revision][:file-or-glob]``, or raise `UsageError`."""
    match = _SPEC.fullmatch(spec)
    if not match or ".." in match["repo"] or "--" in match["repo"]:
        example = "for example 'hf:org/model-GGUF@main:*Q8_0*.gguf'"
        fix = f"write hf:org/repo[@revision][:file-or-glob], {example}"
        raise UsageError(f"not a model on the Hub: {spec}", fix=fix)
    revision = match["revision"]
    if revision and re.fullmatch("[0-9A-Fa-f]{40}", revision):
        revision = revision.lower()
    return HubRef(match["repo"], revision, match["pattern"])


def fetch(ref: HubRef, session: Session, converter: Converter | None) -> list[Path]:
    """Return a model's GGUF files, shards in order; without GGUF, its safetensors are converted.

    Raises UsageError unless one model matches; FetchFailed if the Hub is unreachable, refuses, or
    sends other bytes than it lists; MissingTool or ToolFailed about the converter.
    """
    listing, kind, inputs = _settle(ref, session, converter)
    files: Files = inputs["files"]
    name = ref.repo.partition("/")[2]

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        folder = scratch / "model" / name
        if kind == "converted" and converter:
            _require_packages()
            download(ref.repo, listing.commit, files, folder, session.progress, total_bytes(files))
            target = out / f"{name}-{{OUTTYPE}}.gguf"  # the converter fills it in
            _convert(converter, folder, target, scratch / "convert.log", session.progress)
        else:
            download(ref.repo, listing.commit, files, folder, session.progress)
            for file in files:
                (out / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).replace(out / file)
        return {"license": listing.license, "repo_files": listing.files}

    artifact = session.store.get(kind, ref.repo.replace("/", "--"), inputs, build, session.progress)
    _remember(ref, listing.commit, session.store)
    return sorted(artifact.path / file for file in artifact.manifest["files"])


def _settle(ref: HubRef, session: Session, converter: Converter | None) -> _Plan:
    """Choose a commit and its files, asking the Hub only if needed."""
    earlier = _earlier(ref, session.store)
    for listing in earlier:
        if listing.commit == ref.revision:
            return _plan(ref, listing, converter)
    try:
        listing = list_files(ref.repo, ref.revision or "main")
    except Unreachable as error:
        for listing in earlier:
            with contextlib.suppress(ImatrixLabError):
                plan = _plan(ref, listing, converter)
                if session.store.find(*plan[1:]):
                    commit = f"the last fetched commit {listing.commit} of {ref.repo}"
                    session.progress.say(f"{error.what}: using {commit}")
                    return plan
        what = f"{error.what}, and nothing fetched earlier answers {ref}"
        raise FetchFailed(what, where=ref.repo, fix=error.fix) from None
    return _plan(ref, listing, converter)


def _earlier(ref: HubRef, store: Store) -> list[Listing]:
    """Return the store's listings of this repository and revision, last used first."""
    commits = {ref.revision, *_refs(store).get(ref.name(), [])}
    listings = []
    for artifact in sorted(store.artifacts(), key=Artifact.last_used_s, reverse=True):
        inputs, facts = artifact.manifest["inputs"], artifact.facts
        if "repo_files" in facts and inputs["repo"] == ref.repo and inputs["commit"] in commits:
            listings.append(Listing(inputs["commit"], facts["repo_files"], facts["license"]))
    return listings


def _remember(ref: HubRef, commit: str, store: Store) -> None:
    """Record a commit under its revision; the manifest is the same for any revision."""
    refs = _refs(store)
    commits = refs.setdefault(ref.name(), [])
    if commit not in (ref.revision, *commits):
        commits.append(commit)
        write_whole(store.root / REFS, canonical_json(refs))


def _refs(store: Store) -> dict[str, list[str]]:
    try:
        return dict(json.loads((store.root / REFS).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def _plan(ref: HubRef, listing: Listing, converter: Converter | None) -> _Plan:
    """Choose the files, and whether they are converted."""
    top = [n for n in listing.files if "/" not in n]
    weights = [n for n in top if fnmatchcase(n, "model*.safetensors") and "config.json" in top]
    kind, how = "hub", {}
    if ref.pattern or not weights or _models(listing.files):
        names = _choose(ref, listing, bool(weights))
    elif converter:
        beside = [n for n in top if any(fnmatchcase(n, p) for p in _BESIDE_WEIGHTS)]
        names = sorted({*weights, *beside})
        kind, how = "converted", {"toolchain": converter.version, "outtype": "auto"}
    else:
        what = "these safetensors need llama.cpp's converter, which is not built"
        where = f"{ref.repo} at commit {listing.commit}"
        raise MissingTool(what, where=where, fix="imatrix-lab toolchain build")
    files = {name: listing.files[name] for name in names}
    return listing, kind, {"repo": ref.repo, "commit": listing.commit, "files": files, **how}


def _models(files: Files) -> dict[str, list[str]]:
    """Return the GGUF models: name of the first file -> files."""
    models: dict[str, list[str]] = {}
    for name in sorted(files):
        base = PurePosixPath(name).name.lower()
        if base.endswith(".gguf") and "mmproj" not in base and "imatrix" not in base:
            models.setdefault(_first_shard(name), []).append(name)
    return models


def _first_shard(name: str) -> str:
    return _SHARD.sub(r"\g<stem>-00001-of-\g<count>.gguf", name)


def _choose(ref: HubRef, listing: Listing, has_weights: bool) -> list[str]:
    """Return the files of the one GGUF model that matches, with all its shards."""
    models = _models(listing.files)
    where = f"{ref.repo} at commit {listing.commit}"
    if not models:
        fix = "name a repository with GGUF or safetensors files"
        if has_weights:
            fix = f"name no file, and the safetensors are converted: hf:{ref.repo}"
        raise UsageError("there is no GGUF model in this repository", where=where, fix=fix)
    matching = list(models)
    if pattern := ref.pattern:
        matching = [key for key in models if key == _first_shard(pattern)] or [
            key
            for key, names in models.items()
            if any(fnmatchcase(n, pattern) or fnmatchcase(Path(n).name, pattern) for n in names)
        ]
    if len(matching) != 1:
        shown = matching or list(models)
        sizes = {k: total_bytes({n: listing.files[n] for n in models[k]}) for k in shown}
        listed = [f"\n    {key}  {size(n_bytes)}" for key, n_bytes in sizes.items()]
        what = f"{len(matching)} models match" if matching else "no model matches"
        what += f" {ref}; candidates:" + "".join(listed)
        fix = f"--model '{HubRef(ref.repo, ref.revision, shown[0])}'"
        raise UsageError(what, where=where, fix=fix)
    shard = _SHARD.fullmatch(matching[0])
    if not shard:
        return matching
    count = int(shard["count"])
    whole = [f"{shard['stem']}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    if missing := [name for name in whole if name not in listing.files]:
        what = f"the split model lacks {len(missing)} of {count} files: {', '.join(missing[:3])}"
        fix = "choose another file or revision, or tell the publisher"
        raise FetchFailed(what, where=where, fix=fix)
    return whole


def _require_packages() -> None:
    missing = [n for n in ("torch", "transformers") if importlib.util.find_spec(n) is None]
    if missing:
        fix = "pip install 'imatrix_lab[convert]', or name a repository with GGUF files"
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
