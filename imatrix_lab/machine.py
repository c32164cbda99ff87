"""What this machine has, and the settings that suit it."""

from __future__ import annotations

from imatrix_lab.llamacpp import Compute
from imatrix_lab.records import ModelFacts
from imatrix_lab.toolchain import cores

GPU_BATCH = 2048


def compute_for(
    facts: ModelFacts,
    backend: str,
    *,
    n_ctx: int = 512,
    threads: int | None = None,
    n_batch: int | None = None,
    gpu_layers: int | None = None,
) -> Compute:
    """Return threads, batch and offload for a model on this machine.

    On CPU one window a decode is as fast as four (measured on the demo model: 28.9 s against
    33.2 s for 8 windows), and logits take n_batch x vocabulary x 4 bytes. On a GPU several
    windows at once pay, as long as their logits stay within a quarter of the memory.
    """
    import psutil

    if n_batch is None:
        n_batch = n_ctx
        if backend != "cpu" and gpu_layers != 0:
            # all of the memory, not what is free now: the batch is part of the fingerprint
            room = psutil.virtual_memory().total // 4
            while n_batch < GPU_BATCH and 2 * n_batch * facts.n_vocab * 4 <= room:
                n_batch *= 2
    if gpu_layers is None and backend == "cpu":
        gpu_layers = 0
    return Compute(threads or cores(), n_ctx, n_batch, ubatch(n_batch, n_ctx), gpu_layers)


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
