"""Text inside a Debian package, fetched with apt and read without installing it."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imatrix_lab import proc
from imatrix_lab.corpus.extract import extract
from imatrix_lab.corpus.sources import deb
from imatrix_lab.corpus.sources.kind import Pinned
from imatrix_lab.errors import BadText, FetchFailed, MissingTool, ToolFailed
from imatrix_lab.languages import Language, Source
from imatrix_lab.progress import Progress
from imatrix_lab.records import Document
from imatrix_lab.store import Store, need_room, sha256_file

UPDATE_TIMEOUT_S = 300
LISTS_AGE_MAX_S = 7 * 86400
DOWNLOAD_TIMEOUT_S = 3600
_SHORT = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=10"]


def reach(source: Source, store: Store, progress: Progress) -> Pinned:
    """Ask apt which version of the package there is: of the system's lists, else of our own.

    Where apt has never been updated, lists of our own are fetched into the store, which takes
    no root.
    """
    name = str(source.settings["package"])
    facts = _show(name, [])
    if not facts:
        ours = _our_lists(store)
        if not store.read_only:
            with store.lock("apt", progress):
                _refresh(ours, progress)
        facts = _show(name, _with(ours)) if ours.exists() else {}
    if not facts:
        raise FetchFailed(
            f"apt knows no package {name}",
            fix="sudo apt-get update; a distribution other than Debian may lack this package",
        )
    return Pinned(source, facts["Version"], facts["SHA256"])


def documents(
    pinned: Pinned, language: Language, store: Store, progress: Progress
) -> Iterator[Document]:
    """Yield what the extractor finds in the files named, which may be patterns."""
    return extract(pinned.source, _files(pinned, store, progress))


def _files(pinned: Pinned, store: Store, progress: Progress) -> Iterator[tuple[str, bytes]]:
    source = pinned.source
    package = _package(pinned, store, progress)
    is_empty = True
    for found in deb.members(package, source.settings["files"]):
        is_empty = False
        yield found
    if is_empty:
        raise BadText(f"{source.origin} {pinned.version} has no {source.settings['files'][0]}")


def _package(pinned: Pinned, store: Store, progress: Progress) -> Path:
    name = str(pinned.source.settings["package"])

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        lists = [] if _show(name, []) else _with(_our_lists(store))
        size_bytes = int(_show(name, lists).get("Size", 0))
        need_room(out, size_bytes, f"{name} {pinned.version}")
        progress.say(f"fetching {name} {pinned.version}, {size_bytes / 2**20:.0f} MiB")
        argv = ["apt-get", *lists, *_SHORT, "download", f"{name}={pinned.version}"]
        try:
            proc.run(argv, cwd=scratch, log=scratch / "apt.log", timeout_s=DOWNLOAD_TIMEOUT_S)
        except ToolFailed as error:
            raise FetchFailed(
                f"apt could not download {name} {pinned.version}: {error.what}",
                where=error.where,
                fix="sudo apt-get update, then again; --renew if Debian has replaced it",
            ) from error
        for path in sorted(scratch.glob("*.deb")):
            if sha256_file(path) == pinned.sha256:
                path.replace(out / f"{name}.deb")
                return {}
        raise FetchFailed(f"{name} came with another sha256 than apt's lists say", where=scratch)

    inputs = {"debian": name, "version": pinned.version, "sha256": pinned.sha256}
    return store.get("fetched", name, inputs, build, progress).path / f"{name}.deb"


def _show(name: str, lists: Sequence[str]) -> dict[str, str]:
    """Return apt's facts about a package; nothing if it knows none of that name."""
    try:
        done = proc.run(
            ["apt-cache", *lists, "show", "--no-all-versions", name], check=False, timeout_s=60
        )
    except MissingTool as error:
        raise MissingTool(
            "there is no apt here: Debian packages need Debian, Ubuntu or a relative",
            fix="choose another source: --source NAME",
        ) from error
    fields = dict(re.findall(r"^(Version|SHA256|Size): (\S+)$", done.tail, re.MULTILINE))
    return fields if {"Version", "SHA256"} <= fields.keys() else {}


def _our_lists(store: Store) -> Path:
    return store.root / "apt"


def _with(folder: Path) -> list[str]:
    """Return the options that make apt use lists and caches in a folder."""
    places = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache::archives": folder / "archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
    }
    return [word for key, value in places.items() for word in ("-o", f"{key}={value}")]


def _refresh(folder: Path, progress: Progress) -> None:
    """Fetch lists of our own if there are none; if they are old, only where that works."""
    if not folder.exists():
        progress.say("apt knows nothing of this package: fetching lists of packages into the store")
        _update(folder)
    elif time.time() - folder.stat().st_mtime > LISTS_AGE_MAX_S:
        with contextlib.suppress(FetchFailed):
            _update(folder)


def _update(folder: Path) -> None:
    temporary = folder.with_name("apt.part")
    shutil.rmtree(temporary, ignore_errors=True)
    for name in ("lists/partial", "archives/partial"):
        (temporary / name).mkdir(parents=True)
    argv = ["apt-get", *_with(temporary), *_SHORT, "update", "--error-on=any"]
    try:
        proc.run(argv, log=temporary / "update.log", timeout_s=UPDATE_TIMEOUT_S)
    except ToolFailed as error:
        raise FetchFailed(
            f"apt's lists of packages cannot be fetched: {error.what}",
            where=error.where,
            fix="sudo apt-get update",
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
