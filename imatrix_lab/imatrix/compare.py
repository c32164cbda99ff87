"""How far importance matrices are from each other, and how far two of one language are.

A tensor's energy is its mean squared activations by column; normalised, a distribution over
columns. That is all the quantizer takes from an imatrix: a common factor changes nothing.

=========== ==================================================== ==========================
tv          half the sum of absolute differences of the          0 alike … 1 disjoint: the
            normalised energies (total variation)                share of energy that moves
cosine      of the energies                                      1 alike; the largest
                                                                 columns decide
rank        Spearman's, ties at their mean rank                  1 alike; all columns count
                                                                 the same
top         share of the 1 % of columns with most energy         1 alike
            (at least one) that are the same
=========== ==================================================== ==========================

A tensor with experts has these means over the experts that both files reached, each weighted by
the smaller number of tokens. Over tensors (of a layer, of a role, all) the plain mean is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imatrix_lab.errors import BadImatrix
from imatrix_lab.imatrix.file import Entry, Imatrix, layer_and_role

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MEASURES = ("tv", "cosine", "rank", "top")
TOP_SHARE = 0.01


@dataclass(frozen=True)
class Comparison:
    """Some files, every two of them, by tensor.

    Attributes
    ----------
    labels : of the files.
    tensors : those that all files have.
    values : by measure: shape (tensors, files, files), symmetric, float64; NaN where two files
        have no expert in common.
    tokens : behind each tensor, shape (tensors, files); over all experts.
    n_left_out : tensors that only some of the files have.
    """

    labels: tuple[str, ...]
    tensors: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    tokens: NDArray[np.float64]
    n_left_out: int = 0

    def matrix(self, measure: str) -> NDArray[np.float64]:
        """Return the mean over tensors, shape (files, files)."""
        import numpy as np

        return np.asarray(np.nanmean(self.values[measure], axis=0))

    def by_tensor(self, measure: str, pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
        """Return the mean over some pairs of files for each tensor."""
        import numpy as np

        rows, columns = zip(*pairs, strict=True)
        return np.asarray(np.nanmean(self.values[measure][:, rows, columns], axis=1))

    def pairs(self) -> list[tuple[int, int]]:
        """Return every two files, each pair once."""
        return list(itertools.combinations(range(len(self.labels)), 2))


def compare(files: Sequence[tuple[Path, Imatrix]], labels: Sequence[str]) -> Comparison:
    """Compare every two of some files, tensor by tensor.

    Raises
    ------
    BadImatrix : no tensor in common, different shapes, or values that cannot be compared.
    """
    import numpy as np

    names = set.intersection(*(set(found.entries) for _, found in files))
    union = set.union(*(set(found.entries) for _, found in files))
    if not names:
        raise BadImatrix(
            "these importance matrices have no tensor in common",
            where=", ".join(str(path) for path, _ in files),
            fix="compare only importance matrices of one model",
        )
    ordered = sorted(names, key=_by_layer)
    values = {m: np.full((len(ordered), len(files), len(files)), np.nan) for m in MEASURES}
    tokens = np.zeros((len(ordered), len(files)))
    for i, name in enumerate(ordered):
        energies, counts = _energies(name, files)
        tokens[i] = counts.sum(axis=1)
        for measure, found in _measured(energies, counts).items():
            values[measure][i] = found
    return Comparison(tuple(labels), tuple(ordered), values, tokens, len(union) - len(names))


def grouped(
    tensors: Sequence[str], values: NDArray[np.float64], key: Callable[[str], object]
) -> dict[object, float]:
    """Return the mean of a value by tensor over each group, in the order of the tensors."""
    import numpy as np

    groups: dict[object, list[float]] = {}
    for name, value in zip(tensors, values, strict=True):
        groups.setdefault(key(name), []).append(float(value))
    return {group: float(np.nanmean(found)) for group, found in groups.items()}


def role(tensor: str) -> str:
    """Return ``attn_q`` for ``blk.7.attn_q.weight``."""
    return layer_and_role(tensor)[1]


def layer(tensor: str) -> int | None:
    """Return 7 for ``blk.7.attn_q.weight``; None outside of layers."""
    return layer_and_role(tensor)[0]


def _by_layer(name: str) -> tuple[int, str]:
    number, part = layer_and_role(name)
    return (-1 if number is None else number), part


def _energies(
    name: str, files: Sequence[tuple[Path, Imatrix]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean squared activations (files, matrices, columns) and counts (files, matrices)."""
    import numpy as np

    entries: list[Entry] = [found.entries[name] for _, found in files]
    n_matrices = max(e.counts.size for e in entries)
    sizes = {(e.sums.size, e.counts.size) for e in entries if e.counts.size > 1}
    if len({e.sums.size for e in entries}) > 1 or len(sizes) > 1:
        raise BadImatrix(
            f"{name} has different shapes",
            where=", ".join(str(path) for path, _ in files),
            fix="compare only importance matrices of one model",
        )
    for (path, _), entry in zip(files, entries, strict=True):
        sound = np.isfinite(entry.sums).all() and np.isfinite(entry.counts).all()
        if not sound or (entry.sums < 0).any() or (entry.counts < 0).any():
            raise BadImatrix(
                f"{name} has NaN, infinite or negative values",
                where=path,
                fix=f"see what is wrong: imatrix-lab imatrix show {path}",
            )
    split = [e.split(n_matrices) for e in entries]
    counts = np.stack([e.counts for e in split]).astype(np.float64)
    return np.stack([e.means() for e in split]), counts


def _measured(
    energies: NDArray[np.float64], counts: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Return each measure, shape (files, files); see the module."""
    import numpy as np
    from scipy.stats import rankdata

    n_files, _, n_columns = energies.shape
    total = energies.sum(axis=2, keepdims=True)
    shares = np.divide(energies, total, out=np.zeros_like(energies), where=total > 0)
    known = (counts > 0) & (total[:, :, 0] > 0)
    directions = _unit(energies)
    ranks = rankdata(energies, axis=2)
    ranks = _unit(ranks - ranks.mean(axis=2, keepdims=True))
    n_top = max(1, round(TOP_SHARE * n_columns))
    top = np.zeros(energies.shape, bool)
    order = np.argsort(-energies, axis=2, kind="stable")[:, :, :n_top]
    np.put_along_axis(top, order, True, axis=2)
    found = {m: np.full((n_files, n_files), np.nan) for m in MEASURES}
    for i, j in itertools.combinations_with_replacement(range(n_files), 2):
        weights = np.minimum(counts[i], counts[j]) * (known[i] & known[j])
        if not weights.any():
            continue
        by_matrix = {
            "tv": np.abs(shares[i] - shares[j]).sum(axis=1) / 2,
            "cosine": (directions[i] * directions[j]).sum(axis=1),
            "rank": (ranks[i] * ranks[j]).sum(axis=1),
            "top": (top[i] & top[j]).sum(axis=1) / n_top,
        }
        for measure, values in by_matrix.items():
            found[measure][i, j] = found[measure][j, i] = np.average(values, weights=weights)
    return found


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    length = np.sqrt((vectors**2).sum(axis=2, keepdims=True))
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
