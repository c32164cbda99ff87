"""ggml's own quantization, called in process: the toolchain's libraries, by ctypes.

`ggml_quantize_chunk` (ggml.c) is what llama-quantize calls, with the same arguments, so the bytes
are the same. ctypes releases Python's lock during a call: threads quantize rows side by side.
"""

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray

from imatrix_lab.errors import BadModel, MissingTool
from imatrix_lab.llamacpp.toolchain import Toolchain


@dataclass(frozen=True)
class TensorType:
    """A type of tensors: its code in files, and how many weights a block of how many bytes has."""

    code: int
    name: str
    block: int
    block_bytes: int


_NEWER = TensorType(42, "Q2_0", 64, 18)
"""Known to the pinned llama.cpp, not to the released gguf-py."""
_KNOWN = [TensorType(t.value, t.name, *size) for t, size in GGML_QUANT_SIZES.items()]
TYPES: Mapping[str, TensorType] = {t.name: t for t in (*_KNOWN, _NEWER)}
"""By name, as gguf-py has them (``Q4_K``)."""
BY_CODE: Mapping[int, TensorType] = {t.code: t for t in TYPES.values()}

NEEDS_IMPORTANCE = frozenset(("IQ2_XXS", "IQ2_XS", "IQ1_S"))
"""Types that ggml quantizes with an importance only; it ends the process otherwise."""
OF_WEIGHTS = TYPES.keys() - {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
"""Types that weights can be quantized to."""
_N_TYPES = 43  # GGML_TYPE_COUNT of the pinned llama.cpp


class _TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits`` of the pinned llama.cpp's ``ggml.h``."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("type_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_FAST = {"F16": "ggml_cpu_fp16_to_fp32", "BF16": "ggml_cpu_bf16_to_fp32"}
"""The same values as the types' own ``to_float``, three times as fast."""


class Ggml:
    """Rows of weights to a type and back.

    ``conversions`` has the address of each type's ``to_float`` by name, for kernels; None for F32,
    which needs no conversion.
    """

    def __init__(self, library: ctypes.CDLL):
        self._library = library
        self._quantize = library.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        self._quantize.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p
        ]  # fmt: skip
        traits_of = library.ggml_get_type_traits
        traits_of.restype = ctypes.POINTER(_TypeTraits)
        library.ggml_cpu_init()  # fills the F16 table for processors without an instruction
        self.conversions: dict[str, int | None] = {"F32": None}
        for name, tensor_type in TYPES.items():
            in_ggml = tensor_type.code < _N_TYPES
            if in_ggml and (to_float := traits_of(tensor_type.code).contents.to_float):
                self.conversions[name] = to_float
        self.conversions |= {name: self.address(function) for name, function in _FAST.items()}

    def address(self, function_name: str) -> int:
        """Return the address of one of ggml's functions, for kernels that call it."""
        function = ctypes.cast(getattr(self._library, function_name), ctypes.c_void_p)
        return int(function.value or 0)

    def quantize(
        self, weights: NDArray[np.float32], type_name: str, importance: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """Return rows (rows, columns) in a type, shape (rows, bytes), by ggml's own search.

        `importance` has a positive weight for each column, or is None. Raises BadModel for what
        ggml would end the process for: columns that do not fit, weights that are no numbers, a
        type without quantizer, or a type in `NEEDS_IMPORTANCE` without one.
        """
        n_rows, n_columns = weights.shape
        n_bytes = row_bytes(type_name, n_columns)
        if type_name not in OF_WEIGHTS or (importance is None and type_name in NEEDS_IMPORTANCE):
            raise BadModel(f"no weights are quantized to {type_name} here")
        if not np.isfinite(weights).all():
            raise BadModel("weights are NaN or infinite")
        rows, raw = np.ascontiguousarray(weights, np.float32), np.empty((n_rows, n_bytes), np.uint8)
        by_column = None if importance is None else np.ascontiguousarray(importance, np.float32)
        if by_column is not None and by_column.shape != (n_columns,):
            raise ValueError(f"importance of shape {by_column.shape} for {n_columns} columns")
        self._quantize(
            TYPES[type_name].code, rows.ctypes.data, raw.ctypes.data, 0, n_rows, n_columns,
            None if by_column is None else by_column.ctypes.data,
        )  # fmt: skip
        return raw

    def dequantize(self, raw: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]:
        """Return rows (rows, bytes) of a type as numbers, shape (rows, columns)."""
        if type_name not in self.conversions:
            raise BadModel(f"{type_name} is not a type of weights")
        raw, tensor_type = np.ascontiguousarray(raw, np.uint8), TYPES[type_name]
        n_columns = raw.shape[1] // tensor_type.block_bytes * tensor_type.block
        to_float = self.conversions[type_name]
        if to_float is None:
            return raw.view(np.float32)
        rows = np.empty((len(raw), n_columns), np.float32)
        _TO_FLOAT(to_float)(raw.ctypes.data, rows.ctypes.data, rows.size)
        return rows


def load(tools: Toolchain) -> Ggml:
    """Return ggml from the toolchain's own libraries."""
    name = "libggml.dylib" if sys.platform == "darwin" else "libggml.so"
    try:
        return Ggml(ctypes.CDLL(str(tools.library_dir / name)))
    except (OSError, AttributeError) as error:
        what = f"llama.cpp's library cannot be used: {error}"
        raise MissingTool(what, fix="imatrix-lab toolchain build") from error


def row_bytes(type_name: str, n_columns: int) -> int:
    """Return the bytes of a row in a type; raises BadModel where a row is not whole blocks."""
    tensor_type = TYPES[type_name]
    if n_columns % tensor_type.block:
        what = f"rows of {n_columns} weights are not whole blocks of {type_name}"
        raise BadModel(f"{what} ({tensor_type.block} weights)")
    return n_columns // tensor_type.block * tensor_type.block_bytes
