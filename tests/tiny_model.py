"""A small Llama made for tests: 2 layers, 256 channels, every byte a token of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

CHANNELS, FEED_FORWARD, HEADS, LAYERS = 256, 512, 4, 2
PIECES = ["▁", *"etaonrisldhcumfpgwybvkxjqzåøæ.,", "en", "er", "de", "▁d", "▁e", "▁s", "et", "ng"]


def write(
    path: Path,
    *,
    seed: int = 0,
    experts: int = 0,
    channels: int = CHANNELS,
    feed_forward: int = FEED_FORWARD,
    dtype: Any = np.float16,
    architecture: str = "llama",
    pieces: Sequence[str] = PIECES,
    bos: bool = True,
    output_scale: float = 0.06,
    norm_weight: float = 1.0,
    nan_token: int | None = None,
    chat_template: str = "",
    eos: int = 2,
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """Write an F16 model; with `experts`, a mixture of which two are used for each token.

    Parameters
    ----------
    pieces : tokens beside the bytes; those that begin with a bracket are special.
    bos : whether the tokenizer adds BOS.
    output_scale : 0.06 gives flat distributions, 0.25 some that are sharper than 16 nats.
    nan_token : the token whose embedding is NaN.
    eos : the token that ends a text.
    extra : adds metadata or tensors.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"tiny {seed}")
    writer.add_license("cc0-1.0")
    writer.add_context_length(2048)
    writer.add_embedding_length(channels)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(channels // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    kinds = gguf.LlamaFileType
    writer.add_file_type(kinds.ALL_F32 if dtype == np.float32 else kinds.MOSTLY_F16)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    n_vocab = _vocabulary(writer, pieces, bos, eos)
    if chat_template:
        writer.add_chat_template(chat_template)

    if extra:
        extra(writer)

    def matrix(name: str, *shape: int, scale: float = 0.06) -> None:
        values = rng.normal(0, scale, shape).astype(dtype)
        if name == "token_embd.weight" and nan_token is not None:
            values[nan_token] = np.nan
        writer.add_tensor(name, values)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.full(channels, norm_weight, np.float32))

    matrix("token_embd.weight", n_vocab, channels, scale=1.0)
    matrix("output.weight", n_vocab, channels, scale=output_scale)
    norm("output_norm.weight")
    for i in range(LAYERS):
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{part}.weight", channels, channels)
        if experts:
            router = rng.normal(0, 0.06, (experts, channels)).astype(np.float32)
            writer.add_tensor(f"blk.{i}.ffn_gate_inp.weight", router)
            matrix(f"blk.{i}.ffn_gate_exps.weight", experts, feed_forward, channels)
            matrix(f"blk.{i}.ffn_up_exps.weight", experts, feed_forward, channels)
            matrix(f"blk.{i}.ffn_down_exps.weight", experts, channels, feed_forward)
        else:
            matrix(f"blk.{i}.ffn_gate.weight", feed_forward, channels)
            matrix(f"blk.{i}.ffn_up.weight", feed_forward, channels)
            matrix(f"blk.{i}.ffn_down.weight", channels, feed_forward)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary(writer: gguf.GGUFWriter, pieces: Sequence[str], bos: bool, eos: int) -> int:
    kinds = gguf.TokenType
    tokens: list[tuple[str, float, int]] = [
        ("<unk>", 0.0, kinds.UNKNOWN),
        ("<s>", 0.0, kinds.CONTROL),
        ("</s>", 0.0, kinds.CONTROL),
        ("<|chat|>", 0.0, kinds.CONTROL),
    ]
    tokens += [(f"<0x{i:02X}>", 0.0, kinds.BYTE) for i in range(256)]
    tokens += [
        (piece, -float(i), kinds.CONTROL if piece[0] in "<[" else kinds.NORMAL)
        for i, piece in enumerate(pieces)
    ]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([t[0] for t in tokens])
    writer.add_token_scores([t[1] for t in tokens])
    writer.add_token_types([t[2] for t in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(bos)
    return len(tokens)
