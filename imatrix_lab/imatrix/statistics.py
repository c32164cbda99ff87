"""The statistics of ``llama-imatrix --show-statistics``, by tensor."""

from dataclasses import dataclass

import numpy as np

from imatrix_lab.imatrix.format import Entry, Imatrix, layer_and_role

_INACTIVE = 1e-5


@dataclass(frozen=True)
class TensorStatistics:
    """What llama.cpp's ``compute_statistics`` prints, over the matrices that a token reached.

    ``energy`` is the sum of mean squared activations, ``active`` the share of columns above 1e-5,
    ``entropy_share`` the entropy as a share of log2(n_values) (1 is even), ``high_share`` the
    share of columns one standard deviation above the mean ("ZD"). Not llama.cpp's: ``top_share``,
    the energy in the 1 % of columns that have most.
    """

    tensor: str
    layer: int | None
    role: str
    n_matrices: int
    n_unhit: int
    n_tokens: float
    n_values: int
    energy: float
    minimum: float
    mean: float
    maximum: float
    std_dev: float
    active: float
    entropy_bits: float
    entropy_share: float
    high_share: float
    top_share: float


def of(imatrix: Imatrix) -> list[TensorStatistics]:
    """Return the statistics of every tensor that a token reached, by name."""
    return [_of(name, e) for name, e in sorted(imatrix.entries.items()) if (e.counts > 0).any()]


def _of(name: str, entry: Entry) -> TensorStatistics:
    hit = entry.counts > 0
    with np.errstate(all="ignore"):  # damaged files are shown too
        values = entry.means()[hit].reshape(-1)
        total = float(values.sum())
        shares = values[values > 0] / total
        entropy = float(-(shares * np.log2(shares)).sum()) if total else 0.0
        mean, deviation = float(values.mean()), float(values.std())
        n_top = max(1, round(values.size / 100))
        top = float(np.sort(values)[-n_top:].sum() / total) if total else 0.0
    return TensorStatistics(
        name,
        *layer_and_role(name),
        n_matrices=entry.counts.size,
        n_unhit=int((~hit).sum()),
        n_tokens=float(entry.counts.sum()),
        n_values=values.size,
        energy=total,
        minimum=float(values.min()),
        mean=mean,
        maximum=float(values.max()),
        std_dev=deviation,
        active=float((np.abs(values) > _INACTIVE).mean()),
        entropy_bits=entropy,
        entropy_share=entropy / float(np.log2(values.size)) if values.size > 1 else 0.0,
        high_share=float((values > mean + deviation).mean()) if deviation else 0.0,
        top_share=top,
    )
