"""Fix what can soundly be fixed in an importance matrix; the rest must be computed again."""

from dataclasses import replace

import numpy as np

from imatrix_lab.imatrix import siblings, validate
from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.imatrix.format import LEGACY_WINDOW, REPAIRED, Entry, Imatrix


def repair(imatrix: Imatrix, model: ModelTensors) -> tuple[Imatrix, tuple[str, ...]]:
    """Return an imatrix with every mendable finding fixed, and a description of each change.

    - a tensor that is missing takes the sums of one that reads the same input;
    - an expert that no token reached gets the mean over the others, as one token;
    - fractional counts are rounded, and sums scaled so that the means stay;
    - tensors that are not in the model are dropped;
    - the keys that llama-quantize requires are added.

    The changes are also recorded in the metadata, under `format.REPAIRED`.
    """
    imatrix, taken = from_siblings(imatrix, model)
    changes = []
    entries = {n: e for n, e in imatrix.entries.items() if n in model.tensors}
    if len(entries) < len(imatrix.entries):
        changes.append(f"left out {len(imatrix.entries) - len(entries)} tensors not in the model")
    for name, entry in entries.items():
        whole = entry.whole()
        if whole is not entry:
            changes.append(f"{name}: counts rounded")
        filled = _filled(whole, validate.n_matrices(name, model))
        if filled is not whole:
            changes.append(f"{name}: {validate.FILLED}")
        entries[name] = filled
    if not imatrix.complete:
        window = imatrix.chunk_size or LEGACY_WINDOW
        n_chunks = imatrix.n_tokens() // window
        changes.append(f"set to {n_chunks} windows of {window} tokens")
        imatrix = replace(imatrix, chunk_count=n_chunks, chunk_size=window, complete=True)
    if changes:
        imatrix = _logged(replace(imatrix, entries=entries), changes)
    return imatrix, (*taken, *changes)


def from_siblings(imatrix: Imatrix, model: ModelTensors) -> tuple[Imatrix, list[str]]:
    """Return an imatrix with the tensors that it lacks and a sibling has, and what was done."""
    if not (donors := siblings.lacking(imatrix.entries, model)):
        return imatrix, []
    taken = {name: imatrix.entries[donor] for name, donor in donors.items()}
    changes = [f"{name}: taken from {donor}, same input" for name, donor in donors.items()]
    return _logged(replace(imatrix, entries={**imatrix.entries, **taken}), changes), changes


def _logged(imatrix: Imatrix, changes: list[str]) -> Imatrix:
    log = "; ".join(filter(None, [imatrix.metadata.get(REPAIRED), *changes]))
    return replace(imatrix, metadata={**imatrix.metadata, REPAIRED: log})


def _filled(entry: Entry, n_matrices: int) -> Entry:
    empty = validate.no_tokens(entry, n_matrices)
    if not empty.any():
        return entry
    entry = entry.split(n_matrices)
    sums, counts = entry.sums.copy(), entry.counts.copy()
    pooled = sums[~empty].sum(axis=0, dtype=np.float64) / counts[~empty].sum(dtype=np.float64)
    sums[empty], counts[empty] = pooled, 1
    return Entry(sums, counts)
