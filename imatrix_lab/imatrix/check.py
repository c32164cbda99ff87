"""Whether an importance matrix may reach the quantizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.errors import BadImatrix
from imatrix_lab.gguf_file import TensorInfo
from imatrix_lab.imatrix.file import Entry, Imatrix
from imatrix_lab.models import quantizable
from imatrix_lab.progress import Progress

_NOT_MULTIPLIED = re.compile(r"attn_kv_b\.|compressor_ape|conv1d")
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Findings:
    """What is wrong (``errors``), and what is worth saying (``unhit``: tensor, experts)."""

    errors: tuple[str, ...]
    unhit: tuple[tuple[str, tuple[int, ...]], ...]

    def n_unhit(self) -> int:
        """Return how many (tensor, expert) pairs no token reached."""
        return sum(len(experts) for _, experts in self.unhit)

    def demand_sound(self, where: Path, fix: str, progress: Progress) -> None:
        """Say which experts no token reached.

        Raises
        ------
        BadImatrix : anything is wrong; names the first five.
        """
        if self.errors:
            what = "this importance matrix must not be used: " + "; ".join(self.errors[:5])
            raise BadImatrix(what, where=where, fix=fix)
        for name, experts in self.unhit:
            progress.say(f"note: {name}: no token reached experts {', '.join(map(str, experts))}")


def expected_tensors(
    tensors: Iterable[TensorInfo], n_layers: int, n_skipped: int = 0, n_shared_kv: int = 0
) -> set[str]:
    """Return the tensors a complete imatrix has: those of the layers that are quantized.

    Token embeddings are looked up, not multiplied; the output matrix is collected on request
    only. The last layers of a model with multi-token prediction are not run (`n_skipped`), the
    last layers of some use the keys and values of earlier ones (`n_shared_kv`), MLA models
    multiply by the split halves of ``attn_kv_b``, and convolutions are not products.
    """
    names = set()
    for tensor in tensors:
        match = _LAYER.match(tensor.name)
        if not match or not quantizable(tensor) or _NOT_MULTIPLIED.search(tensor.name):
            continue
        layer = int(match[1])
        shares = layer >= n_layers - n_shared_kv and re.search(r"attn_[kv]\.weight", tensor.name)
        if layer < n_layers - n_skipped and not shares:
            names.add(tensor.name)
    return names


def counted(entry: Entry, n_tokens: int) -> bool:
    """Return whether a dense tensor has seen every token: once, or as often in looped models."""
    return bool(entry.counts[0] > 0 and entry.counts[0] % n_tokens == 0)


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
            if n_tokens and name in expected and not counted(entry, n_tokens):
                errors.append(f"{name} saw {entry.counts[0]:.0f} tokens, not {n_tokens}")
        elif (experts := np.flatnonzero(entry.counts == 0)).size:
            unhit.append((name, tuple(int(e) for e in experts)))
    return Findings(tuple(errors), tuple(unhit))
