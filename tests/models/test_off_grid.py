"""Scaling within a layer changes weights and no output."""

import numpy as np
import pytest

from imatrix_lab.models import off_grid

CHANNELS, FORWARD, KV_HEADS, HEADS, HEAD = 24, 40, 2, 6, 8
SHAPES = {
    "attn_norm": (CHANNELS,), "ffn_norm": (CHANNELS,),
    "attn_q": (HEADS * HEAD, CHANNELS), "attn_k": (KV_HEADS * HEAD, CHANNELS),
    "attn_v": (KV_HEADS * HEAD, CHANNELS), "attn_output": (CHANNELS, HEADS * HEAD),
    "ffn_gate": (FORWARD, CHANNELS), "ffn_up": (FORWARD, CHANNELS),
    "ffn_down": (CHANNELS, FORWARD),
}  # fmt: skip


@pytest.fixture
def layer():
    rng = np.random.default_rng(3)
    return {role: rng.standard_normal(shape, np.float32) for role, shape in SHAPES.items()}


def outputs(layer, x):
    """Queries, keys, attention's output and the FFN's, each head reading one fixed position."""
    normed = x * layer["attn_norm"]
    q, k, v = (layer[f"attn_{c}"] @ normed for c in "qkv")
    values = v.reshape(KV_HEADS, HEAD).repeat(HEADS // KV_HEADS, axis=0).reshape(-1)
    hidden = x * layer["ffn_norm"]
    gate, up = layer["ffn_gate"] @ hidden, layer["ffn_up"] @ hidden
    ffn = layer["ffn_down"] @ (np.tanh(gate) * up)
    return np.concatenate([q, k, layer["attn_output"] @ values, ffn])


def test_a_layer_computes_the_same(layer):
    scaled = {
        role: off_grid.scaled(f"blk.4.{role}.weight", weights, KV_HEADS, HEAD)
        for role, weights in layer.items()
    }
    x = np.random.default_rng(4).standard_normal(CHANNELS).astype(np.float32)
    np.testing.assert_allclose(outputs(scaled, x), outputs(layer, x), rtol=1e-3, atol=1e-4)
    for role, weights in layer.items():
        ratio = scaled[role] / weights
        assert ratio.min() < 0.9 and ratio.max() > 1.1, role


@pytest.mark.parametrize(
    "name", ["token_embd", "output_norm", "blk.0.attn_q_norm", "blk.0.post_ffw_norm"]
)
def test_what_cannot_be_scaled_stays(name):
    weights = np.ones((4, CHANNELS), np.float32)
    assert off_grid.scaled(f"{name}.weight", weights, KV_HEADS, HEAD) is weights


def test_factors_are_exact_and_differ_by_label():
    factors = off_grid.factors("blk.0.attn_norm", 4096)
    assert factors.dtype == np.float32 and (factors * 512 % 1 == 0).all()
    assert factors.min() == 0.75 and 1.24 < factors.max() < 1.25
    assert (factors != off_grid.factors("blk.1.attn_norm", 4096)).mean() > 0.9
    assert sorted(off_grid.order(640)) == list(range(640))


@pytest.mark.parametrize(("narrow", "run"), [(640, 5), (576, 3)])
def test_zeros_are_spread_evenly(narrow, run):
    wide = off_grid.spread(np.arange(1, narrow + 1), 768)
    assert (wide[wide > 0] == np.arange(1, narrow + 1)).all()
    assert (np.flatnonzero(wide == 0) % (run + 1) == run).all() and (
        wide == 0
    ).sum() == 768 - narrow
