"""What can soundly be mended in an importance matrix; the rest must be computed anew."""

import dataclasses

import numpy as np

from imatrix_lab.imatrix import validate
from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.imatrix.format import LEGACY_WINDOW, REPAIRED, Entry, Imatrix


def repair(imatrix: Imatrix, wanted: ModelTensors) -> tuple[Imatrix, tuple[str, ...]]:
    """Return an imatrix with every mendable finding mended, and what was done, in words.

    - an expert that no token reached takes the mean over the others, as one token's worth;
    - counts that are not whole are rounded, and sums scaled so that the means stay;
    - what is no matrix of the model is left out;
    - keys that llama-quantize demands are added.

    What was done is also in the metadata, under `file.REPAIRED`.
    """
    done = []
    entries = {n: e for n, e in imatrix.entries.items() if n in wanted.tensors}
    if len(entries) < len(imatrix.entries):
        done.append(f"left out {len(imatrix.entries) - len(entries)} tensors not in the model")
    for name, entry in entries.items():
        whole = entry.whole()
        if whole is not entry:
            done.append(f"{name}: counts rounded")
        filled = _filled(whole, validate.n_matrices(name, wanted))
        if filled is not whole:
            done.append(f"{name}: {validate.FILLED}")
        entries[name] = filled
    n_chunks, window = imatrix.chunk_count, imatrix.chunk_size
    if not imatrix.complete:
        window = window or LEGACY_WINDOW
        n_chunks = imatrix.n_tokens() // window
        done.append(f"set to {n_chunks} windows of {window} tokens")
    if not done:
        return imatrix, ()
    before = imatrix.metadata.get(REPAIRED)
    metadata = {**imatrix.metadata, REPAIRED: "; ".join([before, *done] if before else done)}
    mended = dataclasses.replace(
        imatrix, entries=entries, chunk_count=n_chunks, chunk_size=window, metadata=metadata,
        complete=True,
    )  # fmt: skip
    return mended, tuple(done)


def _filled(entry: Entry, n_matrices: int) -> Entry:
    """Return an entry whose unhit matrices have the mean over all tokens of the others."""
    missed = validate.no_tokens(entry, n_matrices)
    if not missed.any():
        return entry
    entry = entry.split(n_matrices)
    sums, counts = entry.sums.copy(), entry.counts.copy()
    pooled = sums[~missed].sum(axis=0, dtype=np.float64) / counts[~missed].sum(dtype=np.float64)
    sums[missed], counts[missed] = pooled, 1
    return Entry(sums, counts)
