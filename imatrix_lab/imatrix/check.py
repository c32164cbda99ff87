"""Whether an importance matrix may reach the quantizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from imatrix_lab.gguf_file import TensorInfo
from imatrix_lab.imatrix.file import Imatrix
from imatrix_lab.models import quantizable

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Findings:
    """What is wrong (``errors``), and what is worth saying (``unhit``: tensor, experts)."""

    errors: tuple[str, ...]
    unhit: tuple[tuple[str, tuple[int, ...]], ...]


def expected_tensors(
    tensors: Iterable[TensorInfo], n_layers: int, n_layers_skipped: int = 0
) -> set[str]:
    """Return the tensors a complete imatrix has: those of the layers that are quantized.

    Token embeddings are looked up, not multiplied; the output matrix is collected on request
    only. The last layers of a model with multi-token prediction are not run
    (``nextn_predict_layers``), and MLA models multiply by the split halves of ``attn_kv_b``.
    """
    names = set()
    for tensor in tensors:
        match = _LAYER.match(tensor.name)
        if not match or not quantizable(tensor) or "attn_kv_b." in tensor.name:
            continue
        if int(match[1]) < n_layers - n_layers_skipped:
            names.add(tensor.name)
    return names


def check(imatrix: Imatrix, expected: set[str], n_tokens: int | None = None) -> Findings:
    """Return what is wrong with an imatrix for a model.

    Parameters
    ----------
    n_tokens : tokens every dense tensor must have seen; None if unknown.
    """
    import numpy as np

    errors, unhit = [], []
    if missing := sorted(expected - set(imatrix.entries)):
        errors.append(f"{len(missing)} of {len(expected)} tensors are missing, first {missing[0]}")
    for name, entry in sorted(imatrix.entries.items()):
        if not np.isfinite(entry.sums).all() or not np.isfinite(entry.counts).all():
            errors.append(f"{name} has NaN or infinite values")
        elif (entry.sums < 0).any() or (entry.counts < 0).any():
            errors.append(f"{name} has negative values")
        elif not entry.sums.any():
            errors.append(f"{name} is zero throughout")
        elif entry.counts.size == 1:
            if n_tokens is not None and entry.counts[0] != n_tokens:
                errors.append(f"{name} saw {entry.counts[0]:.0f} tokens, not {n_tokens}")
        elif (experts := np.flatnonzero(entry.counts == 0)).size:
            unhit.append((name, tuple(int(e) for e in experts)))
    return Findings(tuple(errors), tuple(unhit))
