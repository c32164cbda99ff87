"""How fast this machine reads a file, and a model to measure collecting with: in seconds."""

import contextlib
import mmap
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.llamacpp.trial import Shape, write_model

PROBE = Shape(channels=1024, forward=4096, layers=1, heads=8, window=512)
"""Large enough to run at the speed of a larger model's layers."""
_BLOCK_BYTES, _BLOCKS = 8 << 20, 16


@dataclass(frozen=True)
class Disk:
    """How fast a file is read; `past_memory`: from the disk, not from what memory has of it."""

    bytes_per_s: float
    past_memory: bool


def disk(path: Path) -> Disk:
    """Read a little of a file, from its middle, past the page cache."""
    size_bytes = path.stat().st_size
    first = size_bytes // 2 // _BLOCK_BYTES * _BLOCK_BYTES
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return _read(path, first, direct) if direct else _read_dropped(path, first)
    except OSError:  # a file system without O_DIRECT
        return _read_dropped(path, first)


def _read_dropped(path: Path, first: int) -> Disk:
    """Read what was dropped from the page cache, where the system can drop it."""
    if not hasattr(os, "posix_fadvise"):
        return Disk(_read(path, first, 0).bytes_per_s, False)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), first, _BLOCKS * _BLOCK_BYTES, os.POSIX_FADV_DONTNEED)
    return _read(path, first, 0)


def _read(path: Path, first: int, flags: int) -> Disk:
    descriptor = os.open(path, os.O_RDONLY | flags)
    with contextlib.closing(mmap.mmap(-1, _BLOCK_BYTES)) as buffer:  # begins on a page
        try:
            n, began = 0, time.monotonic()
            for i in range(_BLOCKS):
                n += (some := os.preadv(descriptor, [buffer], first + i * _BLOCK_BYTES))
                if some < _BLOCK_BYTES:
                    break
            return Disk(n / max(time.monotonic() - began, 1e-6), True)
        finally:
            os.close(descriptor)


def read_bytes() -> int | None:
    """Return what this process has read from disks so far; None where the system does not say."""
    with contextlib.suppress(OSError):
        match = re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text("ascii"), re.M)
        return int(match[1]) if match else None
    return None


def write_probe(path: Path, tensors: ModelTensors) -> None:
    """Write a model of `PROBE`'s sizes, of the type that most weights of a model have."""
    types = Counter[str]()
    for name in tensors.expected:
        info = tensors.tensors[name][1]
        types[info.type_name] += info.n_elements
    write_model(path, PROBE, max(types, key=lambda name: types[name]))


def active_weights(tensors: ModelTensors, used_share: float) -> int:
    """Return how many weights of the layers a token is multiplied with.

    used_share : of the experts.
    """
    n = 0.0
    for name in tensors.expected:
        info = tensors.tensors[name][1]
        n += info.n_elements * (used_share if tensors.shape(name)[0] > 1 else 1)
    return int(n)
