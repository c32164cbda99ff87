"""Small models with grouped heads, biases, fused or parallel parts, gates or none, experts."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests import tiny_model

CHANNELS, FEED_FORWARD, HEADS, KV_HEADS, LAYERS, EXPERTS = 256, 512, 4, 2, 2, 4
HEAD = CHANNELS // HEADS
VALUES = KV_HEADS * HEAD
FEATURES = {
    "llama": {"gate"},
    "qwen2": {"gate", "qkv bias"},
    "gemma2": {"gate", "post norms", "tied"},
    "gemma3": {"gate", "post norms", "head norms", "tied"},
    "olmo2": {"gate", "post norms", "row norms", "no norms"},
    "phi3": {"fused"},
    "glm4": {"fused", "post norms", "qkv apart"},
    "command-r": {"gate", "parallel", "layer norm", "tied"},
    "phi2": {"parallel", "layer norm", "norm bias", "bias"},
    "nemotron": {"layer norm", "norm bias"},
    "starcoder2": {"layer norm", "norm bias", "bias"},
    "qwen2moe": {"experts", "shared expert", "qkv bias"},
    "gpt-oss": {"experts", "expert bias", "ffn reads post norm", "sinks", "bias"},
}


def write(path: Path, architecture: str, dtype: Any = np.float16) -> Path:
    """Write a model whose channels differ in size, with what `FEATURES` says of it."""
    model = _Writer(path, architecture, dtype)
    for i in range(LAYERS):
        model.layer(f"blk.{i}.")
    model.close()
    return path


class _Writer:
    def __init__(self, path: Path, architecture: str, dtype: Any):
        self.rng, self.dtype = np.random.default_rng(0), dtype
        self.features = FEATURES[architecture]
        self.gguf = writer = gguf.GGUFWriter(path, architecture)
        writer.add_name("tiny")
        writer.add_context_length(2048)
        writer.add_embedding_length(CHANNELS)
        writer.add_block_count(LAYERS)
        writer.add_feed_forward_length(FEED_FORWARD)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_key_length(HEAD)
        writer.add_value_length(HEAD)
        writer.add_rope_dimension_count(HEAD)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_layer_norm_eps(1e-5)
        writer.add_sliding_window(1024)
        writer.add_logit_scale(0.25)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        if "experts" in self.features:
            writer.add_expert_count(EXPERTS)
            writer.add_expert_used_count(2)
            writer.add_expert_feed_forward_length(FEED_FORWARD)
            writer.add_expert_shared_feed_forward_length(FEED_FORWARD)
        n_vocab = tiny_model._vocabulary(writer, tiny_model.PIECES, bos=True, eos=2)
        self.matrix("token_embd", n_vocab, CHANNELS, scale=0.1 if self.has("tied") else 1.0)
        if not self.has("tied"):
            self.matrix("output", n_vocab, CHANNELS)
        if architecture == "phi2":
            self.vector("output.bias", n_vocab, mean=0.0)
        self.norm("output_norm")

    def has(self, feature: str) -> bool:
        return feature in self.features

    def matrix(self, name: str, *shape: int, scale: float = 0.06, bias: bool = False) -> None:
        values = self.rng.normal(0, scale, shape).astype(self.dtype)
        self.gguf.add_tensor(f"{name}.weight", values)
        if bias:
            self.vector(f"{name}.bias", *shape[:-1], mean=0.0)

    def vector(self, name: str, *shape: int, mean: float = 1.0) -> None:
        values = mean + self.rng.normal(0, 0.3, shape)
        self.gguf.add_tensor(name, values.astype(np.float32))

    def norm(self, name: str, *shape: int) -> None:
        values = np.exp(self.rng.normal(0, 0.7, shape or (CHANNELS,)))
        self.gguf.add_tensor(f"{name}.weight", values.astype(np.float32))
        if self.has("norm bias"):
            self.vector(f"{name}.bias", *(shape or (CHANNELS,)), mean=0.0)

    def layer(self, at: str) -> None:
        bias = self.has("bias")
        if not self.has("no norms"):
            self.norm(f"{at}attn_norm")
        if self.has("fused") and not self.has("qkv apart"):
            self.matrix(f"{at}attn_qkv", CHANNELS + 2 * VALUES, CHANNELS)
        else:
            for role, rows in (("q", CHANNELS), ("k", VALUES), ("v", VALUES)):
                own_bias = bias or self.has("qkv bias")
                self.matrix(f"{at}attn_{role}", rows, CHANNELS, bias=own_bias)
        self.matrix(f"{at}attn_output", CHANNELS, CHANNELS, bias=bias)
        if self.has("head norms"):
            self.norm(f"{at}attn_q_norm", HEAD)
            self.norm(f"{at}attn_k_norm", HEAD)
        if self.has("row norms"):
            self.norm(f"{at}attn_q_norm", CHANNELS)
            self.norm(f"{at}attn_k_norm", VALUES)
        if self.has("post norms") or self.has("ffn reads post norm"):
            self.norm(f"{at}post_attention_norm")
        if self.has("post norms"):
            self.norm(f"{at}post_ffw_norm")
        if self.has("sinks"):
            self.vector(f"{at}attn_sinks.weight", HEADS, mean=0.0)
        if not any(map(self.has, ("parallel", "no norms", "ffn reads post norm"))):
            self.norm(f"{at}ffn_norm")
        if self.has("experts"):
            self.experts(at)
            return
        n_up = (2 if self.has("fused") else 1) * FEED_FORWARD
        self.matrix(f"{at}ffn_up", n_up, CHANNELS, bias=bias)
        if self.has("gate"):
            self.matrix(f"{at}ffn_gate", FEED_FORWARD, CHANNELS)
        self.matrix(f"{at}ffn_down", CHANNELS, FEED_FORWARD, bias=bias)

    def experts(self, at: str) -> None:
        own_bias = self.has("expert bias")
        router = self.rng.normal(0, 0.2, (EXPERTS, CHANNELS)).astype(np.float32)
        self.gguf.add_tensor(f"{at}ffn_gate_inp.weight", router)
        if own_bias:
            self.vector(f"{at}ffn_gate_inp.bias", EXPERTS, mean=0.0)
        for role, shape in (
            ("gate", (FEED_FORWARD, CHANNELS)),
            ("up", (FEED_FORWARD, CHANNELS)),
            ("down", (CHANNELS, FEED_FORWARD)),
        ):
            self.matrix(f"{at}ffn_{role}_exps", EXPERTS, *shape, bias=own_bias)
            if self.has("shared expert"):
                self.matrix(f"{at}ffn_{role}_shexp", *shape)
        if self.has("shared expert"):
            self.vector(f"{at}ffn_gate_inp_shexp.weight", CHANNELS, mean=0.0)

    def close(self) -> None:
        self.gguf.write_header_to_file()
        self.gguf.write_kv_data_to_file()
        self.gguf.write_tensors_to_file()
        self.gguf.close()
