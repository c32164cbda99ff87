"""Models larger than memory: how many windows to read at once, so that the file is read seldom.

Each decode reads all of the model's file again where memory cannot keep it. More windows in a
decode mean fewer passes and change no bit of the result on a CPU; they cost memory for

    logits        4 bytes x vocabulary           llama.cpp reserves them, though none is computed
    activations   4 bytes x (3 x widest + 6 x channels)
    attention     8 bytes x heads x tokens of a window
    cache         2 bytes x (rows of all attn_k and attn_v)

a token; each term is what llama.cpp's graph of a Llama holds at its widest point.
"""

from dataclasses import dataclass

from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.models.gguf import read_header
from imatrix_lab.types import Model

WINDOWS_MAX = 64
SHARE = 0.5
"""Of the memory; the rest keeps what was read of the file, and other programs."""


@dataclass(frozen=True)
class Passes:
    """How a model that does not fit in memory is read."""

    n_windows: int
    n_passes: int
    model_bytes: int
    work_bytes: int


def bytes_per_token(model: Model, tensors: ModelTensors, n_ctx: int) -> int:
    """Return the memory that one more token in a decode takes."""
    shapes = {name: info.shape for name, (_, info) in tensors.tensors.items()}
    header, arch = read_header(model.path), model.facts.architecture
    heads = header.integer(f"{arch}.attention.head_count")
    layers = [s for name, s in shapes.items() if name.startswith("blk.")]
    widest = max((max(shape[:2]) for shape in layers), default=model.facts.channels)
    cached = sum(
        shape[1]
        for name, shape in shapes.items()
        if name.endswith(("attn_k.weight", "attn_v.weight"))
    )
    values = model.facts.n_vocab + 3 * widest + 6 * model.facts.channels + 2 * heads * n_ctx
    return 4 * values + 2 * cached


def plan(
    model: Model, tensors: ModelTensors, n_ctx: int, n_windows: int, memory_bytes: int
) -> Passes | None:
    """Return how to read a model's file with so much memory; None if the model fits."""
    model_bytes = model.facts.size_bytes
    if model_bytes <= memory_bytes:
        return None
    window_bytes = n_ctx * bytes_per_token(model, tensors, n_ctx)
    at_once = int(SHARE * memory_bytes / window_bytes)
    at_once = max(1, min(at_once, n_windows, WINDOWS_MAX))
    return Passes(at_once, -(-n_windows // at_once), model_bytes, at_once * window_bytes)
