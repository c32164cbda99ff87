"""Entries of a manifest, and scores, made up."""

import math

from imatrix_lab.pipeline.card.scores import Against, Scored, Scores
from imatrix_lab.records.summary import Summary
from imatrix_lab.stats.clustered import Interval

MODEL = "aa" * 32
SIGNATURE = {
    "toolchain": {"commit": "0c1e57098", "backend": "cpu"},
    "package_version": "0.1.0",
    "reference": {"sha256": MODEL},
    "text": {"sha256": "cc" * 32, "n_documents": 12},
    "protocol": {"name": "document", "n_ctx": 1024},
}


def quant(**facts):
    return {
        "kind": "quant", "language": "nb", "type": "Q4_K_M", "size_bytes": 2**20,
        "bits_per_weight": 4.5, "perplexity": 2.0, "perplexity_reference": 1.0, "fallback": [],
        "model_name": "tiny", "base_model": "", "license": "", "command": "make quant LANG=nb",
        "provenance": "Norwegian Bokmål: imatrix over 65,536 tokens", "note": "",
        "imatrix_sha256": "dd" * 32,
        "model": "tiny-f16.gguf", "left_out": [], "chat_template_sha256": "",
        "types_by_role": {
            "attn_q": {"Q4_K": 2}, "attn_k": {"Q4_K": 2}, "ffn_down": {"Q6_K": 1, "Q4_K": 1}
        },
        "memory_bytes": 2**30, **facts,
    }  # fmt: skip


def interval(estimate: float, half: float = 0.01) -> Interval:
    return Interval(estimate, half / 2, estimate - half, estimate + half, 2000, 12, 11.0)


def against(verdict: str, estimate: float) -> Against:
    return Against(
        "no imatrix Q4_K_M",
        2**20,
        "ee" * 32,
        estimate,
        estimate - 0.01,
        estimate + 0.01,
        0.01,
        verdict,
    )


def scored(file: str, text: str, kld: float, *others: Against, size_bytes: int = 2**20) -> Scored:
    unknown = interval(math.nan)
    summary = Summary(
        text, file, "Q4_K_M", "nb", 4.5, 2000, 12, 0, unknown, unknown, unknown, interval(kld),
        unknown, unknown, unknown, interval(0.75), unknown, unknown, "exact", SIGNATURE,
    )  # fmt: skip
    return Scored(file, size_bytes, summary, others)


def scores(*files: Scored) -> Scores:
    return Scores(tuple(files))
