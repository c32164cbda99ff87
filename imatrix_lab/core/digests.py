"""The sha256 of large files, computed once: kept by path, size, inode and time of change."""

import os
import re
from pathlib import Path

from imatrix_lab.core.files import from_json, sealed_json, sha256_file, unsealed, write_whole
from imatrix_lab.core.session import Session

_SHA256 = re.compile("[0-9a-f]{64}")


def sha256_of(path: Path, session: Session) -> str:
    """Return a file's sha256, computed if it is not known yet."""
    if known := _known(session).get(_key(path)):
        return known
    with session.progress.task(f"sha256 of {path.name}", path.stat().st_size, "B") as task:
        digest = sha256_file(path, task.update)
    remember(path, digest, session)  # another run may lose it again: it writes what it knew
    return digest


def remember(path: Path, sha256: str, session: Session) -> None:
    """Keep a sha256 that was computed while a file was fetched."""
    session.store.root.mkdir(parents=True, exist_ok=True)
    known = {**_known(session), _key(path): sha256}
    write_whole(session.store.root / "sha256.json", sealed_json(known))


def _known(session: Session) -> dict[str, str]:
    try:
        known = unsealed(from_json((session.store.root / "sha256.json").read_bytes()))
    except (OSError, ValueError, AttributeError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, str) and _SHA256.fullmatch(v)}


def _key(path: Path) -> str:
    stat = path.stat()
    name = os.fsencode(os.path.realpath(path)).decode("utf-8", "backslashreplace")
    return f"{name}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
