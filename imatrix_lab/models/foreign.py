"""Files that are whole, and yet no GGUF file that this llama.cpp reads: what they are, what to do.

A file is called damaged only where nothing else explains it.
"""

import re
import struct
from pathlib import Path

from imatrix_lab.errors import BadModel
from imatrix_lab.llamacpp import programs

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_CONVERT = "imatrix-lab model fetch hf:ORG/REPO, the original on the Hub: it is converted"
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (rb"lmgg|tjgg|fmgg|algg|ggml|ggjt|ggmf|ggla", "a ggml file: from before GGUF, or whisper.cpp's",
     f"for a language model: {_CONVERT}"),
    (rb"version https://git-lfs", "a pointer of git-lfs: the model itself was not fetched",
     "git lfs pull, in its folder"),
    (rb"\s*<(!doctype|html|\?xml)", "a web page: the download was refused or redirected",
     "imatrix-lab model fetch hf:ORG/REPO:FILE"),
    (rb"Entry not found|Invalid username|Access to model", "the Hub's refusal of a download",
     "imatrix-lab model fetch hf:ORG/REPO:FILE"),
    (rb"PK\x03\x04|\x80[\x02-\x05]", "PyTorch weights, or an archive", _CONVERT),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd|\xfd7zXZ|BZh", "a compressed file", "unpack it first"),
    (rb"[\x00-\xff]{8}\{", "a safetensors file", _CONVERT),
    (rb"\s*[\[{]", "JSON", "give the GGUF file itself"),
)  # fmt: skip
_PIECE = re.compile(
    r"\.gguf[.-](part\d+of\d+|part-?[a-z0-9]+|split-?[a-z0-9]+|\d{3})$", re.IGNORECASE
)


def require_gguf(path: Path, head: bytes) -> None:
    """Raise BadModel unless a file begins as a GGUF file of a version that llama.cpp reads."""
    if _PIECE.search(path.name):
        what = "this is one piece of a GGUF file that was cut up"
        whole = path.name[: path.name.lower().index(".gguf") + 5]
        fix = f"cat PIECES > {whole}, all of them in order; then give {whole}"
        raise BadModel(what, where=path, fix=fix)
    if not head:
        raise BadModel("this file is empty", where=path, fix="fetch it again")
    if not head.startswith(MAGIC):
        raise _not_gguf(path, head)
    if len(head) < 8:
        what = f"truncated GGUF file: only {len(head)} bytes long"
        raise BadModel(what, where=path, fix="finish the download, or fetch it again")
    (version,) = struct.unpack_from("<I", head, 4)
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0 and version:
        what = "a GGUF file for big-endian processors (s390x, for example)"
        fix = f"gguf-convert-endian {path.name} little, which changes the file in place"
    elif version == 1:
        what = "GGUF version 1 (of 2023), which llama.cpp no longer reads"
        fix = _CONVERT
    elif version > max(VERSIONS) and version < 1000:
        what = f"GGUF version {version}; llama.cpp {programs.COMMIT}, which is used here, reads"
        what += f" versions up to {max(VERSIONS)}"
        fix = "use a newer imatrix_lab, or another GGUF file of this model"
    else:
        what, fix = f"GGUF version {version} does not exist: the file is damaged", "fetch it again"
    raise BadModel(what, where=path, fix=fix)


def _not_gguf(path: Path, head: bytes) -> BadModel:
    """Return the error for a file of another format."""
    what, fix = "it does not begin with 'GGUF'", "give a GGUF file"
    if not head.strip(b"\0"):
        what, fix = "it begins with zeros: a download that never finished", "fetch it again"
    for pattern, name, remedy in _OTHERS:
        if re.match(pattern, head, re.IGNORECASE):
            what, fix = name, remedy
            break
    return BadModel(f"not a GGUF file: {what}", where=path, fix=fix)


def type_name(code: int) -> str:
    """Return the name of a tensor type that this llama.cpp does not know."""
    return f"type {code}"


def type_origin(codes: list[int]) -> str:
    """Return where tensor types come from that this llama.cpp does not know."""
    if all(code in _REMOVED for code in codes):
        return "llama.cpp had them once and removed them"
    if all(code in _REMOVED or code >= _IK_FIRST for code in codes):
        return "ik_llama.cpp has types of its own with such numbers"
    return "newer than this llama.cpp, or of another program"


_REMOVED = {4, 5, 31, 32, 33, 37, 38}  # 36 is also BitNet's
_IK_FIRST = 97
