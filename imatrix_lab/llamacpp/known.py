"""What llama.cpp at `COMMIT` knows by name, to tell before it is built; tests ask its library."""

from gguf.constants import MODEL_ARCH_NAMES

_SINCE_GGUF_PY = (
    "bailingmoe3", "cohere2moe", "deepseek32", "deepseek4", "dflash", "dots3note", "eagle3",
    "gemma4-assistant", "glm5-next", "granite_swa", "graniteswitch", "hrm_text", "hy_v3",
    "hy_v4", "kimi-k3", "laguna", "maple", "mellum", "minimax-01", "minimax-m3", "muse-glimmer",
    "nanbeige", "pockettts", "qwen3tts", "qwen4exp", "spark2_5", "talkie",
)  # fmt: skip
"""Architectures that the released gguf-py lacks."""

ARCHITECTURES = frozenset(MODEL_ARCH_NAMES.values()) | frozenset(_SINCE_GGUF_PY)

PRE_TOKENIZERS = frozenset((
    "a.x-4.0", "afmoe", "bailingmoe", "bailingmoe2", "bloom", "chameleon", "chatglm-bpe",
    "codeshell", "cohere2moe", "command-r", "dbrx", "deepseek-coder", "deepseek-llm",
    "deepseek-r1-qwen", "deepseek-v3", "default", "exaone", "exaone-moe", "exaone4", "f2llmv2",
    "falcon", "falcon-h1", "falcon3", "gemma4", "gigachat", "glm4", "glm5", "gpt-2", "gpt-4o",
    "gpt3-finnish", "granite-docling", "granite-embed-multi-311m", "granite-embed-multi-97m",
    "grok-2", "hunyuan", "hunyuan-dense", "hy_v4", "jais", "jais-2", "jina-de", "jina-es",
    "jina-v1-en", "jina-v2-code", "jina-v2-de", "jina-v2-es", "jina-v5-nano", "joyai-llm",
    "kanana2", "kimi-k2", "kormo", "laguna", "lfm2", "llada-moe", "llama-bpe", "llama-v3",
    "llama3", "llama4", "megrez", "mellum", "mellum2", "midm-2.0", "minerva-7b", "minicpm5",
    "minimax-m2", "modern-bert", "mpt", "olmo", "phi-2", "pixtral", "poro-chat", "qwen2",
    "qwen35", "refact", "roberta-bpe", "sarvam-moe", "seed-coder", "smaug-bpe", "smollm",
    "solar-open", "spark2_5", "stablelm2", "starcoder", "superbpe", "talkie", "tekken",
    "tiny_aya", "trillion", "ufakzeka", "viking", "whitespace", "youtu",
))  # fmt: skip

TOKENIZERS = frozenset((
    "llama", "bert", "gpt2", "hybriddna", "whitespace", "t5", "rwkv", "test", "plamo2", "gemma4",
))  # fmt: skip
BPE = frozenset(("gpt2", "hybriddna", "whitespace", "gemma4"))
BOS = {"llama": 1, "bert": 101, "gpt2": 11, "hybriddna": 11, "whitespace": 11, "plamo2": 1}
"""The tokens that begin a text where a file does not say."""
NO_TOKENIZER = frozenset(("none", "no_vocab"))

ENCODERS = frozenset(("t5", "t5encoder", "eagle3", "dflash"))
DIFFUSION = frozenset(("dream", "llada", "llada-moe", "rnd1"))
DRAFTS = frozenset(("eagle3", "dflash", "gemma4-assistant"))
"""Heads that propose tokens for another model, and do not run alone."""
BIDIRECTIONAL = frozenset(a for a in ARCHITECTURES if "bert" in a) | {
    "gemma-embedding",
    "llama-embed",
}
"""Architectures that are never causal, whatever their files say."""
SPEECH = frozenset(("wavtokenizer-dec", "pockettts"))
