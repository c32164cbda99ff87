"""Models made from quants: widened, and taken off the grid of their types, the function unchanged.

Weights dequantized from Q4_K lie on a grid of Q4_K. Quantized to it again they lose nothing, and
whatever is measured on them flatters the type. Two changes leave no block of weights with one step:

* Each channel of a normalized input is multiplied by a factor (norm weights divided by it, the
  columns of the matrices that read it multiplied), and so is each row of attn_v and ffn_up, which
  the columns of attn_output and ffn_down undo.
* The residual stream's channels are reordered. That is what takes the embedding off its grid: its
  columns cannot be scaled, since they add to what every layer writes into the stream.

Factors and order come from SHAKE-256, factors with 9 bits, and only correctly rounded arithmetic
follows: the weights are the same bytes on every machine.
"""

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.models.scaling import ATTENTION_READS, FFN_READS, ROWS_UNDONE_BY

ROWS_ARE_CHANNELS = ("attn_output.weight", "ffn_down.weight")
"""Matrices that write into the residual stream."""
_NORM_READ_BY = dict.fromkeys(ATTENTION_READS, "attn_norm") | dict.fromkeys(FFN_READS, "ffn_norm")


def scaled(
    name: str, weights: NDArray[np.float32], kv_heads: int, head: int
) -> NDArray[np.float32]:
    """Return one tensor with rows and columns scaled; over a layer, no output changes.

    `kv_heads` value heads of `head` channels are each read by as many query heads.
    """
    layer, _, role = name.removesuffix(".weight").rpartition(".")
    columns = weights.shape[-1]
    if role in _NORM_READ_BY.values():
        return weights / factors(f"{layer}.{role}", columns)
    if role in _NORM_READ_BY:
        weights = weights * factors(f"{layer}.{_NORM_READ_BY[role]}", columns)
    if role in ROWS_UNDONE_BY.values():
        weights = weights * factors(name, len(weights))[:, None]
    if role in ROWS_UNDONE_BY:
        rows = kv_heads * head if role == "attn_output" else columns
        undone = factors(f"{layer}.{ROWS_UNDONE_BY[role]}.weight", rows)
        if role == "attn_output":
            undone = undone.reshape(kv_heads, head).repeat(columns // rows, axis=0).reshape(-1)
        weights = weights / undone
    return weights


def factors(label: str, n: int) -> NDArray[np.float32]:
    """Return n fixed factors in [0.75, 1.25), each a multiple of 1/512."""
    steps = np.frombuffer(hashlib.shake_256(label.encode()).digest(n), np.uint8)
    return np.float32(0.75) + steps.astype(np.float32) / np.float32(512)


def order(n: int) -> NDArray[np.intp]:
    """Return the fixed order of n channels of the residual stream."""
    digest = hashlib.shake_256(b"channels").digest(8 * n)
    return np.argsort(np.frombuffer(digest, "<u8"))


def spread(weights: NDArray[Any], n_wide: int) -> NDArray[Any]:
    """Widen the last axis with zeros, evenly spaced: 640 to 768 is five channels, then a zero.

    Appended zeros would fill whole blocks of 256.
    """
    n = weights.shape[-1]
    groups = math.gcd(n, n_wide)
    wide = np.zeros((*weights.shape[:-1], groups, n_wide // groups), weights.dtype)
    wide[..., : n // groups] = weights.reshape(*weights.shape[:-1], groups, n // groups)
    return wide.reshape(*weights.shape[:-1], n_wide)
