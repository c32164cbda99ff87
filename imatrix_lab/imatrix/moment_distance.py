"""How much moments differ beyond E[x²], between files and free of their scale.

======== ============================================================ ===========================
mean     length of the difference of E[x], each divided by the root    0 alike … 2; the share of
         of its E[|x|²]                                                an input's length that moves
products correlation matrix distance (Herdin et al., "Correlation      0 alike … 1 for blocks that
         matrix distance, a meaningful measure for evaluation of       share nothing … 2
         non-stationary MIMO channels", VTC 2005), 1 - <R, S>/|R||S|,
         of E[x xᵀ] scaled to a diagonal of ones, without that
======== ============================================================ ===========================

``products`` is of the blocks that a file has. Its diagonal is E[x²], which `distance` compares;
what is left says which columns go together, the large ones counting no more than others.
For a tensor with experts both are means weighted by the smaller number of tokens.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.imatrix.moments import Moments

MEASURES = ("mean", "products")


def between(
    files: Sequence[Moments], name: str, counts: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Return each measure (files, files) of what a tensor reads, from tokens (files, matrices).

    NaN where a file has no moments of it, or two files no expert with tokens in common;
    ``products`` also where blocks are not alike.
    """
    n = len(files)
    sums = {m: np.zeros((n, n)) for m in MEASURES}
    total = {m: np.zeros((n, n)) for m in MEASURES}
    for matrix in range(counts.shape[1]):
        weights = np.minimum(counts[:, None, matrix], counts[None, :, matrix])
        sides = [
            _sides(file, name, matrix, tokens[matrix]) if name in file.first else None
            for file, tokens in zip(files, counts, strict=True)
        ]
        for i, j in itertools.combinations_with_replacement(range(n), 2):
            for measure, value in _measures(sides[i], sides[j]).items():
                for at in {(i, j), (j, i)}:
                    sums[measure][at] += weights[i, j] * value
                    total[measure][at] += weights[i, j]
    nothing = {m: np.full((n, n), np.nan) for m in MEASURES}
    return {m: np.divide(sums[m], total[m], out=nothing[m], where=total[m] > 0) for m in MEASURES}


_Sides = tuple[NDArray[np.float64], NDArray[np.float32]]


def _sides(file: Moments, name: str, matrix: int, n_tokens: float) -> _Sides | None:
    """Return E[x] in units of the root of E[|x|²], and R without its diagonal; None without x."""
    blocks = file.blocks(name, matrix)
    squares = np.diagonal(blocks, axis1=1, axis2=2).astype(np.float64)
    energy = squares.sum()
    if not (n_tokens > 0 and energy > 0):
        return None
    mean = file.sums(name)[matrix] / np.sqrt(n_tokens * energy)
    scale = np.zeros_like(squares)
    np.divide(1, np.sqrt(squares), out=scale, where=squares > 0)
    products = (blocks * scale[:, :, None] * scale[:, None, :]).astype(np.float32)
    np.einsum("bii->bi", products)[:] = 0
    return mean, products


def _measures(one: _Sides | None, other: _Sides | None) -> dict[str, float]:
    if one is None or other is None:
        return {}
    values = {"mean": float(np.linalg.norm(one[0] - other[0]))}
    lengths = np.linalg.norm(one[1]) * np.linalg.norm(other[1])
    if one[1].shape == other[1].shape and lengths > 0:
        shared = np.einsum("bij,bij->", one[1], other[1], dtype=np.float64)
        values["products"] = max(0.0, float(1 - shared / lengths))
    return values
