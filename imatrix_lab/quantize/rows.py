"""A few rows that stand for all rows of a tensor.

Some rows hold a hundred times the weight of others (the channels that a model's residual stream
leans on), so rows drawn evenly miss a tensor's error by a quarter. They are drawn with
probabilities in proportion to their size, by systematic sampling, and weighed by the inverse of
them: W. G. Cochran, Sampling Techniques (1977), 9A; Horvitz and Thompson (1952). Nothing is random.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """Numbers of rows, rising, and what each counts: the inverse of its probability."""

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]


def draw(sizes: NDArray[np.float64], n: int) -> Sample:
    """Return about `n` rows, those of size 0 never, and the largest surely.

    A sum over all rows is estimated by the weighted sum over these; without bias but for the rows
    of size 0, and the closer the more it is in proportion to `sizes`.
    """
    certain = np.zeros(len(sizes), np.bool_)
    probabilities = np.where(sizes > 0, 1.0, 0.0)
    if n < np.count_nonzero(sizes):
        while True:
            rest = sizes[~certain].sum()
            probabilities = np.where(certain, 1.0, (n - certain.sum()) * sizes / rest)
            if not (larger := (probabilities >= 1) & ~certain).any():
                break
            certain |= larger
    certain = probabilities >= 1
    ends = np.cumsum(np.where(certain, 0, probabilities))
    marks = np.arange(0.5, ends[-1], 1.0)
    drawn = np.union1d(np.flatnonzero(certain), np.searchsorted(ends, marks, side="right"))
    return Sample(drawn.astype(np.int64), 1 / probabilities[drawn])
