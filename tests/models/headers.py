"""Headers of models, without the models: what matters to llama.cpp before it reads a weight."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

BPE = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
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


def write(path: Path, architecture: str, *parts: dict[str, Any], n_tensors: int = 1) -> Path:
    """Write a GGUF file of the metadata, a None taking a key away, and tensors of 32 x 32."""
    writer = gguf.GGUFWriter(path, architecture)
    metadata: dict[str, Any] = {}
    for part in parts:
        metadata |= part
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for i in range(n_tensors):
        writer.add_tensor(f"blk.{i}.attn_q.weight", np.ones((32, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
