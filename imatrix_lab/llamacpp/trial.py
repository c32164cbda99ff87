"""Does a build of llama.cpp work on this machine? A tiny model of every weight type says.

A compiler and a processor can disagree: GCC 12 drops ggml's AMX tile configuration, for example,
and a program that repacks weights for it dies by SIGILL (llama.cpp issue 26954). So each program,
and the bindings, run once as they are used (not repacked, so AMX is never reached) on a model that
has a matrix of every type. It takes seconds.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from imatrix_lab.core import process
from imatrix_lab.core.progress import Progress
from imatrix_lab.llamacpp.programs import Compute, perplexity_argv
from imatrix_lab.llamacpp.server import serve
from imatrix_lab.llamacpp.toolchain import Toolchain

WEIGHT_TYPES = (
    "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
    "TQ2_0", "TQ1_0", "MXFP4", "NVFP4", "Q2_0", "Q1_0",
)  # fmt: skip
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_WINDOW = 64
_TEXT = "En liten modell leser en liten tekst, og ingen av programmene skal stoppe. " * 8


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama; `window` is its context in tokens."""

    channels: int
    forward: int
    layers: int
    heads: int
    window: int

    def of(self, matrix: str) -> tuple[int, int]:
        """Return rows and columns of a matrix of a layer."""
        rows = self.forward if matrix in ("ffn_gate", "ffn_up") else self.channels
        return rows, self.forward if matrix == "ffn_down" else self.channels

    @property
    def n_weights(self) -> int:
        """The weights of all layers' matrices."""
        return self.layers * sum(rows * columns for rows, columns in map(self.of, _MATRICES))


TRIAL = Shape(256, 256, -(-len(WEIGHT_TYPES) // len(_MATRICES)), 4, _WINDOW)


def try_build(tools: Toolchain, scratch: Path, progress: Progress) -> None:
    """Run every program and the bindings on a tiny model of all weight types."""
    compute = Compute(threads=2, n_ctx=_WINDOW, n_batch=_WINDOW, n_ubatch=_WINDOW)
    text, original, mixed = (scratch / name for name in ("trial.txt", "f16.gguf", "mixed.gguf"))
    text.write_text(_TEXT, encoding="utf-8")
    write_model(original)
    with progress.task("trying llama.cpp on this machine", 6, "") as task:
        environment = {"LLAMA_CPP_LIB_PATH": str(tools.library_dir)}
        for i, argv in enumerate(_argvs(tools, compute, text, original, mixed)):
            log = scratch / "trial.log"
            # Vulkan on a busy processor compiles a shader for each type for minutes
            process.run(argv, env=environment, log=log, timeout_s=1800)
            task.update(i + 1)
        with serve(tools, mixed, 1, _WINDOW, threads=2, log=scratch / "server.log"):
            task.update(6)


def _argvs(
    tools: Toolchain, compute: Compute, text: Path, original: Path, mixed: Path
) -> Iterator[list[str]]:
    imatrix = original.with_name("trial.imatrix.gguf")
    collect = [str(tools.program("llama-imatrix")), "-f", str(text), *compute.argv()]
    collect += ["--chunks", "2", "-o", str(imatrix)]
    yield [*collect, "-m", str(original)]
    types = [
        word
        for i, name in enumerate(WEIGHT_TYPES)
        for word in ("--tensor-type", f"blk\\.{i // 7}\\.{_MATRICES[i % 7]}={name.lower()}")
    ]
    quantize = [str(tools.program("llama-quantize")), "--imatrix", str(imatrix), *types]
    yield [*quantize, str(original), str(mixed), "Q8_0", "2"]
    yield perplexity_argv(tools.program("llama-perplexity"), mixed, text, compute, n_windows=2)
    yield [*collect, "-m", str(mixed)]
    yield [sys.executable, "-P", "-m", "imatrix_lab.llamacpp.trial", str(mixed)]


def write_model(path: Path, shape: Shape = TRIAL, type_name: str = "") -> None:
    """Write a Llama whose vocabulary is the bytes: F16 of random weights, or a type's zeros."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.window)
    writer.add_embedding_length(shape.channels)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.channels // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    control, byte = gguf.TokenType.CONTROL, gguf.TokenType.BYTE
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([gguf.TokenType.UNKNOWN, control, control, *[byte] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    blocks = [f"blk.{layer}" for layer in range(shape.layers)]
    shapes = {name: (len(tokens), shape.channels) for name in ("token_embd", "output")}
    shapes |= {f"{block}.{name}": shape.of(name) for block in blocks for name in _MATRICES}
    for name, rows_columns in shapes.items():
        if type_name:
            code = gguf.GGMLQuantizationType[type_name]
            zeros = np.zeros(gguf.quant_shape_to_byte_shape(rows_columns, code), np.uint8)
            writer.add_tensor(f"{name}.weight", zeros, raw_dtype=code)
        else:
            weights = rng.normal(0, 0.06, rows_columns).astype(np.float16)
            writer.add_tensor(f"{name}.weight", weights)
    norms = (f"{block}.{name}" for block in blocks for name in ("attn_norm", "ffn_norm"))
    for name in ("output_norm", *norms):
        writer.add_tensor(f"{name}.weight", np.ones(shape.channels, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _decode(model: str) -> None:
    """Decode one window with the bindings, in a process that may die of it."""
    import llama_cpp as llama

    llama.llama_backend_init()
    parameters = llama.llama_model_default_params()
    parameters.use_extra_bufts = False
    loaded = llama.llama_model_load_from_file(os.fsencode(model), parameters)
    context = llama.llama_init_from_model(loaded, llama.llama_context_default_params())
    tokens = (llama.llama_token * _WINDOW)(*range(3, 3 + _WINDOW))
    batch = llama.llama_batch_get_one(tokens, _WINDOW)
    if not loaded or not context or llama.llama_decode(context, batch):
        raise SystemExit("the bindings cannot decode the trial model")


if __name__ == "__main__":
    _decode(sys.argv[1])
