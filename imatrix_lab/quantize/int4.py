"""INT4 in groups of 128 by GPTQ and by AWQ: the quantizers of arXiv 2601.18306, to compare with.

llama.cpp has no such type, and the files are not for use: the weights of all matrices inside the
layers are put on the grid, and written as the F16 numbers that they stand for, so that the same
engine scores them.

* `Gptq`: GPTQ (Frantar et al., arXiv 2210.17323) with what llm-compressor does for W4A16: one scale
  for each group, by the largest weight, found before the rounding; 1 % of the mean diagonal added
  to E[x xᵀ]; columns in the order of the file.
* `Awq`: weights scaled by AWQ (Lin et al., arXiv 2306.00978), then scale and zero of each group by
  its smallest and largest weight, which are first clipped where that makes the group's output
  better: of AutoAWQ's ten limits, that with the least error over E[x xᵀ] of the group.

Oracle of both roundings: llm-compressor (tests/quantize/test_int4.py).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core import format
from imatrix_lab.errors import BadModel, UsageError
from imatrix_lab.llamacpp.ggml import Ggml
from imatrix_lab.models import resolve, weights
from imatrix_lab.models.gguf import TensorInfo, read_header
from imatrix_lab.quantize import feedback
from imatrix_lab.quantize.feedback import GROUP, Kernel, Strip
from imatrix_lab.types import NOT_FOR_USE, Model, QuantFacts

VERSION = 1
"""Raise it when the same moments give other weights."""
GPTQ, AWQ = NOT_FOR_USE
DAMPING = 0.01
CLIP_LIMITS = tuple(1 - i / 20 for i in range(10))
"""Parts of the largest weight of a group at which its weights are clipped."""
UNCLIPPED = ("attn_q", "attn_k", "attn_qkv")
"""Matrices whose weights AutoAWQ does not clip: their outputs are multiplied by each other."""
_CODES = 16
_BITS = {GPTQ: 4 + 16 / GROUP, AWQ: 4 + (16 + 4) / GROUP}
"""Bits of a weight, with a 16-bit scale for each group, and a 4-bit zero."""


def is_int4(quant_type: str) -> bool:
    """Whether a type is one of these."""
    return quant_type in NOT_FOR_USE


def settings() -> dict[str, Any]:
    """Return what can change the bytes besides model, imatrix and type."""
    return {"version": VERSION, "damping": DAMPING, "clip_limits": CLIP_LIMITS}


def metadata(quant_type: str, imatrix: Path) -> dict[str, str]:
    """Return what goes into a file's metadata."""
    words = f"dequantized from groups of {GROUP} to be measured, not for use; version {VERSION}"
    narrow = {f"{resolve.INT4}.feedback": text} if (text := narrower(quant_type, imatrix)) else {}
    return {resolve.INT4: quant_type, f"{resolve.INT4}.note": words, **narrow}


def narrower(quant_type: str, imatrix: Path) -> str:
    """Return in which columns feedback stays, if not in all, which GPTQ has it in."""
    source = feedback.read_moments(imatrix)
    blocks = [source.shape(name)[1:] for name in source.inputs]
    widths = {width for n, width in blocks if n > 1}
    return f"within {max(widths)} columns" if widths and quant_type == GPTQ else ""


def bits_per_weight(quant_type: str, quant: Path, model: Model, imatrix: Path) -> float:
    """Return the bits that a weight would have in its type, over all tensors of an F16 file."""
    infos = read_header(quant).tensors
    source = feedback.read_moments(imatrix)
    n_int4 = sum(p.quant.info.n_elements for p in feedback.pairs(takes, model, quant, source))
    n_bits = sum(8 * t.size_bytes for t in infos) - (16 - _BITS[quant_type]) * n_int4
    return n_bits / sum(t.n_elements for t in infos)


def note(quant: QuantFacts, n_weights: int) -> str:
    """Return what a card says of one of these files; "" of others."""
    if not is_int4(quant.type):
        return ""
    size = format.size(round(quant.bits_per_weight * n_weights / 8))
    return (
        f"{quant.name} is not for use: its weights are those of INT4 in groups of {GROUP}, written"
        f" as F16 to be measured. Bits per weight are INT4's, with which it would take {size}."
    )


def check(imatrix: Path | None, types: Iterable[str], in_other_ways: bool) -> None:
    """Raise UsageError, BadImatrix for an imatrix (or none) that INT4 cannot be made with.

    `in_other_ways`: AWQ or feedback is asked for.
    """
    named = next(filter(is_int4, types), None)
    if named is None:
        return
    if in_other_ways:
        what = f"{named} has its own way of rounding"
        raise UsageError(what, fix="leave --awq and --feedback out")
    if imatrix is None:
        raise UsageError(f"{named} needs an imatrix with moments", fix=feedback.COLLECT)
    feedback.read_moments(imatrix, named)


def rounding(quant_type: str, kernel: Kernel) -> feedback.Rounding:
    """Return how weights are rounded to a type."""
    return Gptq(kernel) if quant_type == GPTQ else Awq(kernel.ggml)


def takes(info: TensorInfo) -> bool:
    """Return whether a tensor of an F16 file is put on the grid: matrices inside the layers."""
    return info.type_name == "F16" and _is_inside(info)


def _is_inside(info: TensorInfo) -> bool:
    inside = "blk." in info.name and resolve.quantizable(info)
    return inside and info.shape[0] % GROUP == 0


def names(model: Model) -> set[str]:
    """Return the matrices of a model that may be put on the grid."""
    return {name for name, (_, info) in weights.tensors(model).items() if _is_inside(info)}


def for_awq(
    name: str, matrix: int, values: NDArray[np.float32], by_column: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return rows rounded as AWQ's search for scales has them: not clipped (`awq.Rounding`)."""
    return nearest(values)


class Gptq:
    """Symmetric INT4 with error feedback."""

    takes_unseen = True

    def __init__(self, kernel: Kernel):
        self.kernel, self.ggml = kernel, kernel.ggml

    def takes(self, info: TensorInfo) -> bool:
        """See `takes`."""
        return takes(info)

    def prepared(
        self, blocks: NDArray[np.float32], n_tokens: float, n_columns: int
    ) -> NDArray[np.float32]:
        """Return the factor of damped moments."""
        return feedback.factor(damped(blocks), 0.0)

    def round(self, rows: NDArray[np.float32], strip: Strip) -> NDArray[np.uint8]:
        """Return rows as F16."""
        return half(self.rounded(rows, strip.prepared, strip.importance))

    def rounded(
        self, rows: NDArray[np.float32], factor: NDArray[np.float32], squares: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return rows (rows, columns) on the grid; columns that were never active become 0."""
        step = symmetric(rows)
        if squares.any():  # else an expert that no token reached: no feedback
            rows = np.where(squares > 0, rows, np.float32(0))
        return self.kernel.on_grid(rows, step, -_CODES // 2 * step, factor)


class Awq:
    """Asymmetric INT4 with a search for the clipping limit of each group."""

    takes_unseen = True

    def __init__(self, ggml: Ggml):
        self.ggml = ggml

    def takes(self, info: TensorInfo) -> bool:
        """See `takes`."""
        return takes(info)

    def prepared(
        self, blocks: NDArray[np.float32], n_tokens: float, n_columns: int
    ) -> NDArray[np.float32]:
        """Return the moments of each group's columns, (groups, columns, columns)."""
        return diagonal_blocks(blocks, n_columns)

    def round(self, rows: NDArray[np.float32], strip: Strip) -> NDArray[np.uint8]:
        """Return rows as F16."""
        role = strip.pair.quant.info.name.removesuffix(".weight").rpartition(".")[2]
        return half(nearest(rows) if role in UNCLIPPED else clipped(rows, strip.prepared))


def damped(blocks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return moments with 1 % of the mean of the active columns' squares on the diagonal."""
    squares = blocks.diagonal(axis1=1, axis2=2)
    mean = squares[squares > 0].mean(dtype=np.float64) if squares.any() else 0.0
    return blocks + DAMPING * mean * np.eye(blocks.shape[1])


def diagonal_blocks(blocks: NDArray[np.float32], n_columns: int) -> NDArray[np.float32]:
    """Return the blocks of `GROUP` columns on the diagonal of wider ones."""
    starts = range(0, blocks.shape[1], GROUP)
    groups = [block[i : i + GROUP, i : i + GROUP] for block in blocks for i in starts]
    return np.stack(groups[: n_columns // GROUP])


def symmetric(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the step of each group, (rows, groups): codes -8 … 7 around 0."""
    largest = np.abs(_groups(rows)).max(axis=2)
    return _not_zero(largest / np.float32((_CODES - 1) / 2))


def nearest(
    rows: NDArray[np.float32], limit: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return rows with each weight at the nearest value of its group's asymmetric grid.

    Weights beyond ± `limit`, (rows, groups, 1), are clipped first.
    """
    groups = _groups(rows)
    if limit is not None:
        groups = np.clip(groups, -limit, limit)
    least = np.minimum(groups.min(axis=2, keepdims=True), 0)
    most = np.maximum(groups.max(axis=2, keepdims=True), 0)
    step = _not_zero((most - least) / np.float32(_CODES - 1))
    zero = np.clip(np.rint(-least / step), 0, _CODES - 1)
    codes = np.clip(np.rint(groups / step) + zero, 0, _CODES - 1)
    return np.asarray((codes - zero) * step).reshape(rows.shape)


def clipped(rows: NDArray[np.float32], moments: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `nearest` with the limit of each group at which its output error is least.

    The error of a group's output, for the group's `moments` H = E[x xᵀ], is (w - q) H (w - q)ᵀ.
    """
    groups = _groups(rows)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    best, least = np.empty_like(groups), np.full(groups.shape[:2], np.inf)
    for part in CLIP_LIMITS:
        values = _groups(nearest(rows, largest * np.float32(part)))
        error = (groups - values).transpose(1, 0, 2)
        losses = np.sum((error @ moments) * error, axis=2).T
        better = losses < least
        best[better], least[better] = values[better], losses[better]
    return best.reshape(rows.shape)


def half(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return rows as the bytes of F16; raises BadModel for what F16 cannot hold."""
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(rows, np.float16)
    if not np.isfinite(values).all():
        raise BadModel("weights are NaN, infinite or beyond F16")
    return values.view(np.uint8)


def _groups(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows.reshape(len(rows), -1, GROUP)


def _not_zero(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(steps > 0, steps, np.finfo(np.float32).tiny)
