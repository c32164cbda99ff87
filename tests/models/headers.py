"""Headers of models, without the models: what matters to llama.cpp before it reads a weight."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

BPE = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<|end|>", "a", "b", "ab"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
}
SPM = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))],
    "tokenizer.ggml.scores": [0.0] * 259,
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256],
}


CHANNELS = 32
LLAMA = {
    "llama.block_count": 1,
    "llama.context_length": 2048,
    "llama.feed_forward_length": CHANNELS,
    "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
"""With the tensors of `whole`, a model that llama.cpp runs."""
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def whole(path: Path, *parts: dict[str, Any]) -> Path:
    """Write a Llama of one layer that llama.cpp loads, with a vocabulary's metadata."""
    names = [f"blk.0.{name}" for name in (*_MATRICES, "attn_norm", "ffn_norm")]
    return write(path, "llama", LLAMA, *parts, names=(*names, "output_norm"))


def write(
    path: Path, architecture: str, *parts: dict[str, Any], names: Sequence[str] = (), n: int = 1
) -> Path:
    """Write a GGUF file of the metadata, a None taking a key away, and `n` + names tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    sizes = ("block_count", "context_length", "embedding_length")
    metadata: dict[str, Any] = {f"{architecture}.{name}": 32 for name in sizes}
    for part in parts:
        metadata |= part
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    n_vocab = len(metadata.get("tokenizer.ggml.tokens") or [0])
    shapes = {"token_embd": (n_vocab, CHANNELS)} if n else {}
    for name in (*shapes, *names):
        shape = (CHANNELS,) if "norm" in name else shapes.get(name, (CHANNELS, CHANNELS))
        dtype = np.float32 if "norm" in name else np.float16
        writer.add_tensor(f"{name}.weight", np.ones(shape, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
