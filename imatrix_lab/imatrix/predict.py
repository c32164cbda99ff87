"""Predict a quant's loss in a language, from weights and importance matrices alone.

The quantizer's own objective. For a tensor W, its quantized W' and a language with squared
activations s[c] at input column c,

    loss = sum_c s[c] error[c] / sum_c s[c] power[c]

with ``error`` and ``power`` of `quant_error`: the share of the squared output W·x that quantizing
loses, averaged over the language's tokens, if the products of columns averaged to zero (an imatrix
keeps the diagonal of their second moments only). With moments of every language it is that share
as `output_error` knows it, means and correlations within blocks included. It has no unit, and the
scale of an imatrix cancels. llama.cpp minimizes nearly the first, block by block, for the imatrix
it is given: its ``quantize_row_*_impl`` (ggml-quants.c) weigh a squared error by
s[c] sqrt(sigma² + W²).

The matrices of a mixture of experts are weighed by the plain sums, so that an expert counts as
often as the language's tokens are routed to it, and one they never reach counts nothing.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.errors import BadImatrix
from imatrix_lab.imatrix.format import Imatrix, layer_and_role
from imatrix_lab.imatrix.output_error import Expected
from imatrix_lab.imatrix.quant_error import Columns, activations

GRID_MAX = 20_000
_STEPS = (20, 10, 5, 4, 2, 1)


@dataclass(frozen=True)
class Losses:
    """Numerator and denominator of what one quant loses, shape (tensors, languages).

    In squared activations times squared weights, summed over the tokens of a language's imatrix.
    """

    tensors: tuple[str, ...]
    languages: tuple[str, ...]
    lost: NDArray[np.float64]
    energy: NDArray[np.float64]

    def relative(self) -> NDArray[np.float64]:
        """Return the loss of each tensor for each language."""
        return self.lost / self.energy

    def overall(self) -> NDArray[np.float64]:
        """Return the loss for each language: the mean over tensors, each counting the same."""
        return np.asarray(self.relative().mean(axis=0))

    def grouped(self, by: str) -> dict[str, NDArray[np.float64]]:
        """Return means by ``role`` (``attn_q``) or ``layer`` (``7``); outside of layers by name."""
        rows = defaultdict(list)
        for name, row in zip(self.tensors, self.relative(), strict=True):
            layer, role = layer_and_role(name)
            rows[role if by == "role" or layer is None else str(layer)].append(row)
        return {key: sum(group) / len(group) for key, group in rows.items()}


def losses(
    columns: Mapping[str, Callable[[], Columns]], languages: Mapping[str, Imatrix]
) -> Losses:
    """Return what a quant loses in each language, over the tensors that all imatrices have.

    `columns` are the quant's sums, from `quant_error.read`. A tensor in which a language's
    activations meet only zero weights has no loss and is skipped.
    """
    names = [n for n in columns if all(n in i.entries for i in languages.values())]
    if not names:
        raise BadImatrix("the importance matrices and the quant have no tensor in common")
    lost, energy = np.empty((2, len(names), len(languages)))
    for row, name in enumerate(names):
        sums = columns[name]()
        for column, (language, imatrix) in enumerate(languages.items()):
            s = activations(imatrix.entries[name], sums.error.shape, f"{name} of {language}")
            lost[row, column] = (s * sums.error).sum()
            energy[row, column] = (s * sums.power).sum()
    return _kept(names, tuple(languages), lost, energy)


def expected_losses(errors: Mapping[str, Mapping[str, Expected]]) -> Losses:
    """Return what a quant loses in each language, from its expected errors by language and tensor.

    The same tensors are covered as by `losses`.
    """
    first, *rest = errors.values()
    names = [n for n in first if all(n in e for e in rest)]
    if not names:
        raise BadImatrix("the importance matrices and the quant have no tensor in common")
    sums = np.array([[errors[language][n] for language in errors] for n in names])
    return _kept(names, tuple(errors), sums[..., 0], sums[..., 1])


def _kept(
    names: Sequence[str],
    languages: tuple[str, ...],
    lost: NDArray[np.float64],
    energy: NDArray[np.float64],
) -> Losses:
    kept = np.asarray((energy > 0).all(axis=1))
    if not kept.any():
        raise BadImatrix("in every tensor some language's activations meet only zero weights")
    tensors = tuple(itertools.compress(names, kept))
    return Losses(tensors, languages, lost[kept], energy[kept])


# -- mixtures


def grid(n_languages: int) -> NDArray[np.float64]:
    """Return every mixture in steps of a twentieth, or coarser above `GRID_MAX` mixtures.

    Shape (mixtures, languages); rows sum to 1; the pure languages are included.
    """
    n_bars = n_languages - 1
    n = next(n for n in _STEPS if n == 1 or math.comb(n + n_bars, n_bars) <= GRID_MAX)
    bars = itertools.combinations(range(n + n_bars), n_bars)
    cuts = np.array([(-1, *b, n + n_bars) for b in bars])
    return (np.diff(cuts, axis=1) - 1) / n


def mixture_losses(pure: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Predict the losses of quants made with mixtures, without making any.

    The error of a quant made with a mixture is not known before it is made. With the pure
    languages' errors held fixed and interpolated, loss_l(w) = sum_k w_k pure[k, l], a weighted
    average would never beat the best pure language; but the quantizer adapts to the mixture.
    Assumed here: around each language's own optimum its loss grows with the squared distance
    of the quant, the same for every language, and a mixture's quant lies at the weighted mean.
    With D[j, k] the mean of the two excesses pure[j, k] - pure[k, k] and pure[k, j] - pure[j, j],

        loss_l(w) = sum_k w_k pure[k, l] - 1/2 sum_jk w_j w_k D[j, k],

    exact at the pure languages; between two of them the excess over the own quant's loss falls
    with the square of the other's weight. Our own; docs/predict.md shows how it compares.
    `pure` is (calibration, language); the rows of `weights` (mixtures, languages) sum to 1.
    """
    excess = pure - np.diagonal(pure)
    distance = (excess + excess.T) / 2
    gain = 0.5 * np.einsum("mj,jk,mk->m", weights, distance, weights)
    return np.asarray(weights @ pure - gain[:, None])


def objective(
    losses: NDArray[np.float64], importance: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return what to minimize of losses (…, languages): their mean by importance, or the worst."""
    if importance is None:
        return np.asarray(losses.max(axis=-1))
    return np.asarray(losses @ (importance / importance.sum()))
