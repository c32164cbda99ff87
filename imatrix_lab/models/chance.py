"""Whether a model predicts a text at all: a reference worse than chance measures nothing."""

import math

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.errors import BadModel
from imatrix_lab.types import Model

TOKENS_MIN = 256
"""A mean over fewer says little."""
VOCABULARY_MIN = 2000
"""Smaller ones are of toys: chance among a few hundred bytes is soon as good as a real model."""


class Chance:
    """Compares a reference's mean loss with that of guessing among all tokens alike."""

    def __init__(self, model: Model):
        self._model, self._sum, self._n = model, 0.0, 0
        self._n_broken = 0

    def add(self, nll_nats: NDArray[np.floating]) -> None:
        """Count tokens' losses; raise BadModel if the mean is above chance, or none is finite."""
        finite = nll_nats[np.isfinite(nll_nats)]
        self._sum, self._n = self._sum + float(finite.sum(dtype=np.float64)), self._n + len(finite)
        self._n_broken += len(nll_nats) - len(finite)
        if not self._n and self._n_broken >= TOKENS_MIN:
            what = f"{self._model.label} gives no finite number for {self._n_broken:,} tokens"
            raise BadModel(what, where=self._model.path, fix="fetch or convert the model again")
        if self._n >= TOKENS_MIN:
            require_better(self._sum / self._n, self._model)


def require_better(mean_nats: float, model: Model) -> None:
    """Raise BadModel if a mean loss, in nats a token, is above that of guessing."""
    n_vocab = model.facts.n_vocab
    if n_vocab < VOCABULARY_MIN or not mean_nats > math.log(n_vocab):
        return
    raise BadModel(
        f"{model.label} predicts this text worse than chance: {mean_nats:.2f} nats a token, and"
        f" {math.log(n_vocab):.2f} by guessing among {n_vocab:,} tokens. The text or the model is"
        " wrong",
        where=model.path,
        fix="look whether the text is readable and in a language of the model; if it is, the model"
        " file is broken: fetch or convert it again",
    )
