"""Importance matrices made up for tests."""

import numpy as np

from imatrix_lab.imatrix.format import Entry, Imatrix


def entry(sums, counts):
    """An entry: sums in rows of one matrix each."""
    sums = np.asarray(sums, np.float32)
    return Entry(sums.reshape(len(counts), -1), np.asarray(counts, np.float32))


def imatrix(language="", model="", **tensors):
    """An imatrix: name -> (sums, counts)."""
    metadata = {"imatrix_lab.model.sha256": model} if model else {}
    entries = {name: entry(*both) for name, both in tensors.items()}
    return Imatrix(entries, ("x",), 1, 512, language, metadata)
