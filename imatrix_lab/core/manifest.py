"""The manifest of an artefact: what it was made of, and size and sha256 of its files."""

from typing import Any

from imatrix_lab.core.files import from_json, unsealed

MANIFEST = "manifest.json"
KEY_CHARS = 16
"""So much of a fingerprint is in the names of folders."""
_TYPES = {"kind": str, "fingerprint": str, "inputs": dict, "facts": dict}
_KNOWN = {*_TYPES, "store_version", "files"}  # another: the digest's own name was damaged


def parsed(text: bytes) -> dict[str, Any] | None:
    """Return a manifest, or None if this is none, or not as it was written."""
    try:
        manifest = unsealed(from_json(text))
        typed = all(isinstance(manifest[key], kind) for key, kind in _TYPES.items())
        is_whole = typed and manifest.keys() <= _KNOWN
        for entry in manifest["files"].values():
            is_whole = is_whole and entry["size_bytes"] >= 0 and len(entry["sha256"]) > 0
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if is_whole else None
