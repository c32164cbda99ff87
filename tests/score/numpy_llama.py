"""A Llama in numpy, float64: an independent reference for what the engine scores.

RMSNorm (Zhang & Sennrich 2019), rotary positions on neighbouring pairs (Su et al. 2021, as
llama.cpp's "norm" rope), causal attention, SwiGLU (Shazeer 2020). Weights are read through gguf.
"""

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize


class NumpyLlama:
    """The model of a GGUF file.

    Parameters
    ----------
    half_cache : round keys and values to float16, which is what llama.cpp keeps of them.
    """

    def __init__(self, path: Path, half_cache: bool = True):
        reader = gguf.GGUFReader(path)
        self._weights = {
            t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors
        }

        def number(name: str) -> float:
            return float(reader.fields[f"llama.{name}"].contents())

        self._layers = int(number("block_count"))
        self._heads = int(number("attention.head_count"))
        self._eps = number("attention.layer_norm_rms_epsilon")
        self._half_cache = half_cache

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Return the logits after each token, (n, vocabulary)."""
        w = self._weights
        x = w["token_embd.weight"][tokens]
        for i in range(self._layers):
            layer = {k.split(".", 2)[2]: v for k, v in w.items() if k.startswith(f"blk.{i}.")}
            x = x + self._attention(layer, self._norm(x, layer["attn_norm.weight"]))
            h = self._norm(x, layer["ffn_norm.weight"])
            gate = h @ layer["ffn_gate.weight"].T
            silu = gate / (1 + np.exp(-gate))
            x = x + (silu * (h @ layer["ffn_up.weight"].T)) @ layer["ffn_down.weight"].T
        return np.asarray(self._norm(x, w["output_norm.weight"]) @ w["output.weight"].T)

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.asarray(x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self._eps) * weight)

    def _attention(self, layer: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        n = len(x)
        q, k, v = (
            (x @ layer[f"attn_{name}.weight"].T).reshape(n, self._heads, -1).swapaxes(0, 1)
            for name in "qkv"
        )
        q, k = rotated(q), rotated(k)
        if self._half_cache:
            k, v = (y.astype(np.float16).astype(np.float64) for y in (k, v))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (p / p.sum(axis=-1, keepdims=True)) @ v
        return np.asarray(mixed.swapaxes(0, 1).reshape(n, -1) @ layer["attn_output.weight"].T)


def rotated(x: np.ndarray) -> np.ndarray:
    """Rotate each pair (2j, 2j + 1) by position times 10000^(-2j/d)."""
    n, d = x.shape[-2:]
    angle = np.arange(n)[:, None] * 10_000.0 ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle), np.sin(angle)
    even, odd = x[..., ::2], x[..., 1::2]
    turned = np.empty_like(x)
    turned[..., ::2], turned[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
    return turned
