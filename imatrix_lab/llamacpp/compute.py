"""Compute settings for this machine."""

import contextlib
import sys
from pathlib import Path

import psutil

from imatrix_lab.llamacpp.programs import Compute, Placement
from imatrix_lab.llamacpp.toolchain import IN_MEMORY, cores
from imatrix_lab.types import ComputeOptions, ModelFacts

WINDOW = 512
"""Tokens of a window of llama-imatrix, by default."""
GPU_BATCH = 2048
MEMORY_SHARE = 0.8
"""Of this machine's memory, for models."""
LOGITS_BYTES = {"cpu": 80 << 20, "gpu": 512 << 20}
"""Logits of one decode when scoring. llama.cpp holds them twice for each model. On CPU larger is
hardly faster: 64, 128 and 256 rows of a 262k vocabulary took 12.7, 11.4 and 10.6 s."""


def compute_for(facts: ModelFacts, options: ComputeOptions) -> Compute:
    """Return threads, batch and offload for a model on this machine.

    On CPU one window a decode is as fast as four (measured on the demo model: 28.9 s against
    33.2 s for 8 windows), and logits take n_batch x vocabulary x 4 bytes. On a GPU several
    windows at once pay, as long as their logits stay within a quarter of the memory.
    """
    n_ctx, n_batch = options.n_ctx or WINDOW, options.n_batch
    if n_batch is None:
        n_batch = n_ctx
        if on_gpu(options):
            # all of the memory, not what is free now: the batch is part of the fingerprint
            room = memory_bytes() // 4
            while n_batch < GPU_BATCH and 2 * n_batch * facts.n_vocab * 4 <= room:
                n_batch *= 2
    n_ubatch = ubatch(n_batch, n_ctx)
    return Compute(options.threads or cores(), n_ctx, n_batch, n_ubatch, *placement(options))


def on_gpu(options: ComputeOptions) -> bool:
    """Return whether a GPU computes."""
    return options.backend not in IN_MEMORY and options.gpu_layers != 0


def placement(options: ComputeOptions) -> Placement:
    """Return where tensors lie by the options alone; see `offload` for what is planned."""
    if options.backend in IN_MEMORY:
        return Placement(0)
    return Placement(options.gpu_layers, override_tensor=options.override_tensor)


def ubatch(n_batch: int, n_ctx: int) -> int:
    """Return a micro-batch that leaves no rest of fewer than 16 tokens.

    llama-imatrix ignores products of fewer than 16 tokens, so such a rest would not be counted.
    Several windows go into one micro-batch, for the same reason.
    """
    if n_batch > n_ctx:
        return n_batch
    parts = (n_batch, n_ctx % n_batch)  # the decodes of one window
    return next(
        u for u in range(min(512, n_batch), 0, -1) if all(not 0 < part % u < 16 for part in parts)
    )


def logit_rows(n_vocab: int, options: ComputeOptions) -> int:
    """Return how many rows of logits one decode computes when scoring.

    A function of vocabulary and backend alone: the number can change a logit's last bits.
    """
    return max(
        32, min(512, LOGITS_BYTES["gpu" if on_gpu(options) else "cpu"] // (4 * n_vocab) // 16 * 16)
    )


def memory_bytes() -> int:
    """Return how much memory this process may use: the machine's, or its control group's limit.

    Not what is free now, which would change choices by the hour.
    """
    return min(int(psutil.virtual_memory().total), *_group_limits(Path("/proc/self/cgroup")))


def free_memory_bytes() -> int:
    """Return how much memory this process may use, and no other program uses now."""
    return min(memory_bytes(), int(psutil.virtual_memory().available))


def _group_limits(groups: Path, root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return the limits of a process's control groups, versions 1 and 2, and of those above."""
    limits = [sys.maxsize]
    with contextlib.suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            folder = root / controllers / path.lstrip("/")
            for at in (folder, *folder.parents):
                if not at.is_relative_to(root):
                    break
                with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                    limits.append(int((at / name).read_text(encoding="ascii")))
    return limits
