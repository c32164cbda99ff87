"""Importance matrices made up for tests."""

import json

import numpy as np

from imatrix_lab.imatrix import format, moments
from imatrix_lab.imatrix.format import Entry, Imatrix, Tensor


def entry(sums, counts):
    """An entry: sums in rows of one matrix each."""
    sums = np.asarray(sums, np.float32)
    return Entry(sums.reshape(len(counts), -1), np.asarray(counts, np.float32))


def imatrix(language="", model="", **tensors):
    """An imatrix: name -> (sums, counts)."""
    metadata = {"imatrix_lab.model.sha256": model} if model else {}
    entries = {name: entry(*both) for name, both in tensors.items()}
    return Imatrix(entries, ("x",), 1, 512, language, metadata)


def write_moments(path, inputs, block=256, language=""):
    """Write a file of the moments of some rows (tokens, columns): tensor -> rows by matrix."""
    entries, tensors = {}, []
    for name, by_matrix in inputs.items():
        n_columns = by_matrix[0].shape[1]
        width = min(block, n_columns) if block > 256 else block
        blocks = np.zeros((len(by_matrix), -(-n_columns // width), width, width), np.float32)
        for of_matrix, x in zip(blocks, by_matrix, strict=True):
            for b, products in enumerate(of_matrix):
                part = x[:, b * width : (b + 1) * width]
                products[: part.shape[1], : part.shape[1]] = part.T @ part
        squares = np.stack([(x**2).sum(0) for x in by_matrix]).astype(np.float32)
        entries[name] = Entry(squares, np.array([len(x) for x in by_matrix], np.float32))
        sums = np.stack([x.sum(0) for x in by_matrix]).astype(np.float32)
        tensors.append(Tensor.of(name + moments.SUMS, sums))
        tensors.append(Tensor.of(name + moments.BLOCKS, blocks.reshape(-1, width, width)))
    about = {moments.KEY: json.dumps({name: name for name in inputs})}
    format.write(path, Imatrix(entries, ("x",), 1, 512, language, about, more=tensors))
    return path
