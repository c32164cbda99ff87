"""How much importance matrices differ, and how much two of one language do (the noise).

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

Where all files have moments, `moment_distance` adds what differs beyond energies.

Columns without energy in any file (padding, say) are skipped: that they agree says nothing.
For a tensor with experts the mean is over the experts that both files reached, weighted by the
smaller number of tokens. Over tensors (of a layer, of a role, all) the plain mean is taken.
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.errors import BadImatrix
from imatrix_lab.imatrix import moment_distance, moments
from imatrix_lab.imatrix.align import Files, aligned, paths
from imatrix_lab.imatrix.format import layer_and_role
from imatrix_lab.imatrix.moments import Moments

MEASURES = ("tv", "cosine", "rank", "top")
TOP_SHARE = 0.01


@dataclass(frozen=True)
class Distances:
    """The measures between every two files, by tensor that all of them have.

    ``values``, by measure, have shape (tensors, files, files), and NaN where two files have no
    expert in common; ``tokens`` has shape (tensors, files). Some files lack ``n_skipped`` tensors.
    """

    labels: tuple[str, ...]
    tensors: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    tokens: NDArray[np.float64]
    n_skipped: int = 0

    def matrix(self, measure: str) -> NDArray[np.float64]:
        """Return the mean over tensors, shape (files, files)."""
        return np.asarray(_nanmean(self.values[measure], 0))

    def pairs(self) -> list[tuple[int, int]]:
        """Return each pair of files once."""
        return list(itertools.combinations(range(len(self.labels)), 2))


def compare(files: Files, labels: Sequence[str]) -> Distances:
    """Compare every two files, tensor by tensor; raises BadImatrix if they do not fit."""
    tensors = [set(imatrix.entries) for _, imatrix in files]
    names, union = set.intersection(*tensors), set.union(*tensors)
    if not names:
        what = "these importance matrices have no tensor in common"
        fix = "compare only importance matrices of one model"
        raise BadImatrix(what, where=paths(files), fix=fix)
    ordered = sorted(names, key=_by_layer)
    sources = _moments(files)
    measures = (*MEASURES, *(moment_distance.MEASURES if sources else ()))
    values = {m: np.full((len(ordered), len(files), len(files)), np.nan) for m in measures}
    of_inputs = dict[tuple[str, ...], dict[str, NDArray[np.float64]]]()  # q, k and v share one
    tokens = np.zeros((len(ordered), len(files)))
    for i, name in enumerate(ordered):
        entries = aligned(name, files)
        energies = np.stack([e.means() for e in entries])
        counts = np.stack([e.counts for e in entries]).astype(np.float64)
        tokens[i] = counts.sum(axis=1)
        for measure, matrix in _measures(energies, counts).items():
            values[measure][i] = matrix
        inputs = tuple(m.first.get(name, name) for m in sources)
        if sources and inputs not in of_inputs:
            of_inputs[inputs] = moment_distance.between(sources, name, counts)
        for measure, matrix in of_inputs.get(inputs, {}).items():
            values[measure][i] = matrix
    return Distances(tuple(labels), tuple(ordered), values, tokens, len(union) - len(names))


def _moments(files: Files) -> list[Moments]:
    """Return the files' moments, or nothing if one has none."""
    sources = [moments.read(path) if path.is_file() else None for path, _ in files]
    return [m for m in sources if m] if all(sources) else []


@dataclass(frozen=True)
class NoiseFloor:
    """How far samples of one language are from each other: the scale for a difference.

    For each tensor, ``by_tensor`` has the mean of each measure over the pairs of samples, and
    ``highest`` the highest total variation; one more pair is above that of n with a probability
    of 1 / (n + 1). ``n_tokens`` is of the smallest sample: with fewer tokens samples differ more.
    """

    by_tensor: dict[str, NDArray[np.float64]]
    highest: NDArray[np.float64]
    n_pairs: int
    n_tokens: int

    def overall(self, measure: str) -> float:
        """Return the mean over tensors."""
        return float(np.nanmean(self.by_tensor[measure]))


def noise_floor(samples: Sequence[Files], tensors: Sequence[str]) -> NoiseFloor:
    """Return how far pairs of samples of one language are apart; their texts must not overlap."""
    values: dict[str, list[NDArray[np.float64]]] = {}
    for pair in samples:
        distances = compare(pair, ["", ""])
        if missing := [name for name in tensors if name not in distances.tensors]:
            what, fix = f"the noise samples have no {missing[0]}", "use samples of the same model"
            raise BadImatrix(what, where=paths(pair), fix=fix)
        order = [distances.tensors.index(name) for name in tensors]
        for measure, by_tensor in distances.values.items():
            values.setdefault(measure, []).append(by_tensor[order, 0, 1])
    n_tokens = min(imatrix.n_tokens() for pair in samples for _, imatrix in pair)
    means = {m: _nanmean(v, 0) for m, v in values.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        highest = np.nanmax(values["tv"], axis=0)
    return NoiseFloor(means, highest, len(samples), n_tokens)


def summary(distances: Distances, floor: NoiseFloor | None) -> dict[str, Any]:
    """Return means over every two files: ``matrix`` by measure, ``roles`` and ``layers``.

    Those that differ most come first, with each measure, its ``noise``, how many ``tensors`` are
    ``above_noise`` (every pair's total variation), and how many would be ``above_by_chance``.
    """
    rows, columns = zip(*distances.pairs(), strict=True)
    values = {m: _nanmean(v[:, rows, columns], 1) for m, v in distances.values.items()}

    def groups(part: int) -> list[dict[str, Any]]:
        rows: dict[object, list[int]] = {}
        for i, name in enumerate(distances.tensors):
            if (key := layer_and_role(name)[part]) is not None:
                rows.setdefault(key, []).append(i)
        unsorted = [{"name": name, **_group(values, floor, r)} for name, r in rows.items()]
        return sorted(unsorted, key=lambda g: -float(g["tv"]))

    return {
        "labels": distances.labels,
        "matrix": {m: distances.matrix(m).tolist() for m in distances.values},
        "overall": _group(values, floor, list(range(len(distances.tensors)))),
        "roles": groups(1),
        "layers": groups(0),
    }


def _group(
    values: dict[str, NDArray[np.float64]], floor: NoiseFloor | None, rows: list[int]
) -> dict[str, Any]:
    group: dict[str, Any] = {m: float(_nanmean(v[rows])) for m, v in values.items()}
    group["tensors"] = len(rows)
    if floor:
        group["noise"] = {
            m: float(_nanmean(v[rows])) for m, v in floor.by_tensor.items() if m in values
        }
        group["above_noise"] = int((values["tv"][rows] > floor.highest[rows]).sum())
        group["above_by_chance"] = len(rows) / (floor.n_pairs + 1)
    return group


def _nanmean(values: Any, axis: int | None = None) -> Any:
    """Return means over what is known; NaN, without a warning, of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def _by_layer(name: str) -> tuple[int, str]:
    layer, role = layer_and_role(name)
    return (-1 if layer is None else layer), role


def _measures(
    energies: NDArray[np.float64], counts: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Return each measure (files, files) of energies (files, matrices, columns) and tokens."""
    from scipy.stats import rankdata

    energies = energies[:, :, energies.any(axis=(0, 1))]
    n_files, _, n_columns = energies.shape
    total = energies.sum(axis=2, keepdims=True)
    shares = np.divide(energies, total, out=np.zeros_like(energies), where=total > 0)
    known = (counts > 0) & (total[:, :, 0] > 0)
    directions = _unit(energies)
    ranks = rankdata(energies, axis=2)
    ranks = _unit(ranks - ranks.mean(axis=2, keepdims=True))
    n_top = max(1, round(TOP_SHARE * n_columns))
    top = np.zeros(energies.shape, bool)
    order = np.argsort(-energies, axis=2, kind="stable")
    np.put_along_axis(top, order[:, :, :n_top], True, axis=2)
    measures = {m: np.full((n_files, n_files), np.nan) for m in MEASURES}
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
            measures[measure][i, j] = measures[measure][j, i] = np.average(values, weights=weights)
    return measures


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.sqrt((vectors**2).sum(axis=2, keepdims=True))
    unit = np.zeros_like(vectors)
    np.divide(vectors, length, out=unit, where=length > 0)
    return unit
