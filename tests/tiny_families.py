"""Small models beside `tiny_model`: with a state, hybrid, with fused matrices."""

from pathlib import Path

import gguf
import numpy as np

from tests import tiny_model
from tests.tiny_model import CHANNELS, FEED_FORWARD, HEADS, LAYERS

FAMILIES = ("mamba", "lfm2", "phi3")
INNER, STATE, STEP_RANK, KERNEL = 2 * CHANNELS, 16, 32, 4  # of Mamba's layers
CACHE = 3  # of LFM2's short convolution


def write(path: Path, architecture: str) -> Path:
    """Write an F16 model whose head is its embedding.

    mamba : selective state spaces alone. lfm2 : a layer of convolution, then one of attention.
    phi3 : q, k and v are one matrix, and so are gate and up.
    """
    model = _Writer(path, architecture)
    layers = {"mamba": model.mamba, "lfm2": model.lfm2, "phi3": model.phi3}
    for i in range(LAYERS):
        layers[architecture](i)
    model.close()
    return path


class _Writer:
    def __init__(self, path: Path, architecture: str):
        self.rng = np.random.default_rng(0)
        self.gguf = writer = gguf.GGUFWriter(path, architecture)
        writer.add_name("tiny")  # llama.cpp looks for tokens of Phi-3 in a model of that name
        writer.add_context_length(2048)
        writer.add_embedding_length(CHANNELS)
        writer.add_block_count(LAYERS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        n_vocab = tiny_model._vocabulary(writer, tiny_model.PIECES, bos=True, eos=2)
        self.matrix("token_embd", n_vocab, CHANNELS, scale=1.0)
        if architecture == "mamba":
            writer.add_feed_forward_length(0)
            writer.add_head_count(0)
            writer.add_ssm_conv_kernel(KERNEL)
            writer.add_ssm_inner_size(INNER)
            writer.add_ssm_state_size(STATE)
            writer.add_ssm_time_step_rank(STEP_RANK)
        else:
            writer.add_feed_forward_length(FEED_FORWARD)
            writer.add_head_count(HEADS)
            writer.add_head_count_kv([0, HEADS] if architecture == "lfm2" else HEADS)
            writer.add_rope_dimension_count(CHANNELS // HEADS)
            writer.add_shortconv_l_cache(CACHE)
        self.ones("token_embd_norm" if architecture == "lfm2" else "output_norm", CHANNELS)

    def matrix(self, name: str, rows: int, columns: int, scale: float = 0.06) -> None:
        values = self.rng.normal(0, scale, (rows, columns))
        self.gguf.add_tensor(f"{name}.weight", values.astype(np.float16))

    def ones(self, name: str, n: int) -> None:
        self.gguf.add_tensor(f"{name}.weight", np.ones(n, np.float32))

    def floats(self, name: str, *shape: int) -> None:
        self.gguf.add_tensor(name, self.rng.normal(0, 0.3, shape).astype(np.float32))

    def mamba(self, i: int) -> None:
        at = f"blk.{i}"
        self.ones(f"{at}.attn_norm", CHANNELS)
        self.matrix(f"{at}.ssm_in", 2 * INNER, CHANNELS)
        self.floats(f"{at}.ssm_conv1d.weight", INNER, KERNEL)
        self.floats(f"{at}.ssm_conv1d.bias", INNER)
        self.matrix(f"{at}.ssm_x", STEP_RANK + 2 * STATE, INNER)
        self.matrix(f"{at}.ssm_dt", INNER, STEP_RANK)
        self.floats(f"{at}.ssm_dt.bias", INNER)
        decay = -np.tile(np.arange(1, STATE + 1, dtype=np.float32), (INNER, 1))
        self.gguf.add_tensor(f"{at}.ssm_a", decay)
        self.gguf.add_tensor(f"{at}.ssm_d", np.ones(INNER, np.float32))
        self.matrix(f"{at}.ssm_out", CHANNELS, INNER)

    def lfm2(self, i: int) -> None:
        at = f"blk.{i}"
        if i == 0:
            self.floats(f"{at}.shortconv.conv.weight", CHANNELS, CACHE)
            self.matrix(f"{at}.shortconv.in_proj", 3 * CHANNELS, CHANNELS)
            self.matrix(f"{at}.shortconv.out_proj", CHANNELS, CHANNELS)
        else:
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                self.matrix(f"{at}.{name}", CHANNELS, CHANNELS)
            for name in ("attn_q_norm", "attn_k_norm"):
                self.ones(f"{at}.{name}", CHANNELS // HEADS)
        self.ones(f"{at}.attn_norm", CHANNELS)
        self.ones(f"{at}.ffn_norm", CHANNELS)
        self.matrix(f"{at}.ffn_gate", FEED_FORWARD, CHANNELS)
        self.matrix(f"{at}.ffn_up", FEED_FORWARD, CHANNELS)
        self.matrix(f"{at}.ffn_down", CHANNELS, FEED_FORWARD)

    def phi3(self, i: int) -> None:
        at = f"blk.{i}"
        self.matrix(f"{at}.attn_qkv", 3 * CHANNELS, CHANNELS)
        self.matrix(f"{at}.attn_output", CHANNELS, CHANNELS)
        self.ones(f"{at}.attn_norm", CHANNELS)
        self.ones(f"{at}.ffn_norm", CHANNELS)
        self.matrix(f"{at}.ffn_up", 2 * FEED_FORWARD, CHANNELS)
        self.matrix(f"{at}.ffn_down", CHANNELS, FEED_FORWARD)

    def close(self) -> None:
        self.gguf.write_header_to_file()
        self.gguf.write_kv_data_to_file()
        self.gguf.write_tensors_to_file()
        self.gguf.close()
