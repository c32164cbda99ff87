"""A loaded model whose tensors are replaced in memory: a quant of a few tensors without a file.

The weights are read rather than mapped, so that they can be written, through ggml, wherever they
lie: in memory or on a GPU. A replacement is stored in the tensor's own type, as the same numbers
in a GGUF file would be; the original is read from the file again.
"""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadModel, MissingTool
from imatrix_lab.llamacpp import native
from imatrix_lab.llamacpp.ggml import Ggml
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import weights
from imatrix_lab.score.engine import Engine

SOURCE = Path(__file__).with_name("patched.cpp")
BLOCK_WEIGHTS = 1 << 22
"""Weights that are replaced at a time: 16 MiB as float32."""
_LISTS = ("_Z29llama_internal_get_tensor_mapB5cxx11PK11llama_model",
          "_Z29llama_internal_get_tensor_mapPK11llama_model")  # fmt: skip
"""llama.cpp's list of tensors as GCC and Clang call it."""

Change = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""Takes rows (rows, columns) and the number of their matrix; returns what they become."""


class Patched(Engine):
    """A model loaded to be changed; see `Engine`."""

    writable = True

    def open_tensors(self, tools: Toolchain, ggml: Ggml, session: Session) -> None:
        """Find the tensors; before the first `replace`."""
        self._ggml, self._files = ggml, weights.tensors(self._record)
        self._set = _function(ggml, "ggml_backend_tensor_set", *_SET)
        self._pointers = _pointers(tools, self._model, session)
        n_bytes = _function(ggml, "ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)
        for name, pointers in self._pointers.items():
            tensor = self._files.get(name)
            if tensor and any(n_bytes(p) != tensor.info.size_bytes for p in pointers):
                raise BadModel(f"llama.cpp holds {name} in another form", where=tensor.path)

    def has(self, name: str) -> bool:
        """Return whether llama.cpp loaded a tensor: it leaves out what it does not use."""
        return name in self._pointers and name in self._files

    def replace(self, name: str, change: Change) -> None:
        """Change a tensor, some rows at a time."""
        tensor = self._files[name]

        def changed(block: tuple[int, int, int]) -> NDArray[np.uint8]:
            matrix, first, n = block
            rows = change(weights.read_rows(self._ggml, tensor, first, n), matrix)
            return self._ggml.quantize(rows, tensor.info.type_name, None)

        pieces = blocks(tensor.info.shape)
        for (_, first, _), raw in native.in_order(changed, pieces, self._settings.threads):
            self._write(name, first, raw)

    def restore(self, name: str) -> None:
        """Put a tensor of the file back."""
        tensor = self._files[name]
        for _, first, n in blocks(tensor.info.shape):
            self._write(name, first, weights.read_raw(tensor, first, n))

    def _write(self, name: str, first: int, raw: NDArray[np.uint8]) -> None:
        for pointer in self._pointers[name]:
            self._set(pointer, raw.ctypes.data, first * raw.shape[1], raw.nbytes)


def blocks(shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Return (matrix, first row over all matrices, rows) of pieces of a tensor, in order."""
    n_columns, n_rows = shape[:2]
    n_matrices, step = int(np.prod(shape[2:], dtype=int)), max(1, BLOCK_WEIGHTS // n_columns)
    return [
        (matrix, matrix * n_rows + start, min(step, n_rows - start))
        for matrix in range(n_matrices)
        for start in range(0, n_rows, step)
    ]


_SET = (None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


def _function(ggml: Ggml, name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *arguments)(ggml.address(name))


def _pointers(tools: Toolchain, model: Any, session: Session) -> dict[str, list[int]]:
    """Return the addresses of a model's tensors; a tied head on a GPU has two of one name."""
    library = native.compiled(SOURCE, "patched", tools, session)
    of = _list_of_tensors(tools)
    library.n_tensors.restype, library.tensor_at.restype = ctypes.c_size_t, ctypes.c_void_p
    pointers: dict[str, list[int]] = {}
    at, name = ctypes.c_void_p(model), ctypes.c_char_p()
    for i in range(library.n_tensors(of, at)):
        pointer = library.tensor_at(of, at, ctypes.c_size_t(i), ctypes.byref(name))
        pointers.setdefault((name.value or b"").decode(), []).append(pointer)
    return pointers


def _list_of_tensors(tools: Toolchain) -> ctypes.c_void_p:
    file = "libllama.dylib" if sys.platform == "darwin" else "libllama.so"
    try:
        library = ctypes.CDLL(str(tools.library_dir / file))
    except OSError as error:
        what = f"llama.cpp's library cannot be used: {error}"
        raise MissingTool(what, fix="imatrix-lab toolchain build") from error
    for name in _LISTS:
        if hasattr(library, name):
            return ctypes.cast(getattr(library, name), ctypes.c_void_p)
    what = "llama.cpp's library does not list a model's tensors"
    raise MissingTool(what, where=file, fix="imatrix-lab toolchain build")
