"""What a card says of a file that its header tells: memory, types by role, chat template."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imatrix_lab.core import hub_cache
from imatrix_lab.core.files import from_json
from imatrix_lab.errors import UsageError
from imatrix_lab.models import hub_spec, resolve
from imatrix_lab.models.gguf import GgufHeader, read_header
from imatrix_lab.pipeline.allocate import by_role

CONTEXT = 4096
"""Tokens of context for which memory is estimated."""
_UBATCH = 512
_SENSES = ("vision", "audio")


def facts_of(shards: Sequence[Path]) -> dict[str, Any]:
    """Return facts in the header of a model's files, as they stand in a manifest.

    `memory_bytes` is about what llama.cpp takes at most: the file, a cache of `CONTEXT` tokens at
    16 bits, and the buffers of a batch of 512.
    """
    headers = [read_header(path) for path in shards]
    first, tensors = headers[0], [t for h in headers for t in h.tensors]
    size_bytes = sum(path.stat().st_size for path in shards)
    template = first.text("tokenizer.chat_template")
    return {
        "types_by_role": by_role({t.name: t.type_name for t in tensors if resolve.quantizable(t)}),
        "memory_bytes": size_bytes + _cache_bytes(first) + _buffer_bytes(first, tensors),
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else "",
        "license_name": first.text("general.license.name"),
        "license_link": first.text("general.license.link"),
    }


def _cache_bytes(header: GgufHeader) -> int:
    """Return keys and values of every layer; sliding windows take less."""
    arch = header.text("general.architecture")
    n_layers, heads = header.integer(f"{arch}.block_count"), f"{arch}.attention.head_count"
    n_heads = _each(header, heads, n_layers, 1)
    n_kv_heads = _each(header, f"{heads}_kv", n_layers, max(n_heads, default=1))
    width = header.integer(f"{arch}.embedding_length") // max(1, *n_heads, 1)
    sizes = (header.integer(f"{arch}.attention.{x}_length", width) for x in ("key", "value"))
    return 2 * CONTEXT * sum(sizes) * sum(n_kv_heads)


def _each(header: GgufHeader, key: str, n_layers: int, default: int) -> list[int]:
    """Return a setting of each layer, which may be one for all; `default` where it is unknown."""
    value = header.metadata.get(key, default)
    if isinstance(value, list):
        return [int(n) for n in value]
    return [value if isinstance(value, int) else default] * n_layers


def _buffer_bytes(header: GgufHeader, tensors: Sequence[Any]) -> int:
    """Return logits and the widest activations of a batch, at 32 bits."""
    arch = header.text("general.architecture")
    n_vocab = max((t.shape[1] for t in tensors if t.name == "token_embd.weight"), default=0)
    width = header.integer(f"{arch}.feed_forward_length")
    return 4 * _UBATCH * (n_vocab + 2 * width)


def left_out(origin: str, n_mtp_layers: int) -> list[str]:
    """Return what of a model on the Hub its GGUF lacks, as far as its config.json is here.

    llama.cpp's converter makes a GGUF of the language model; towers become files of their own.
    """
    try:
        ref = hub_spec.parse(origin)
        cached = hub_cache.CachedRepo(hub_cache.default_root(), ref.repo)
        config = from_json((cached.snapshot(ref.revision or "") / "config.json").read_bytes())
    except (UsageError, OSError, ValueError):
        return []
    config = config if isinstance(config, dict) else {}
    parts = [f"the {sense} tower" for sense in _SENSES if config.get(f"{sense}_config")]
    has_mtp = config.get("num_nextn_predict_layers") and not n_mtp_layers
    return parts + (["the layers for multi-token prediction (MTP)"] if has_mtp else [])
