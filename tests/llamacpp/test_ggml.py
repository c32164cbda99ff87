"""ggml in process, against gguf-py and against what the real llama-quantize writes."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES

from imatrix_lab.core import process
from imatrix_lab.errors import BadModel
from imatrix_lab.imatrix import format
from imatrix_lab.imatrix.format import Entry, Imatrix
from imatrix_lab.llamacpp import ggml
from imatrix_lab.models import weights
from imatrix_lab.models.gguf import TensorInfo
from imatrix_lab.models.weights import FileTensor
from tests import tiny_model

TYPES = (
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4", "F16", "BF16", "F32",
)  # fmt: skip
TENSOR = "blk.0.ffn_up.weight"


@pytest.fixture(scope="module")
def lib(tools):
    return ggml.load(tools)


@pytest.fixture(scope="module")
def importance():
    return np.random.default_rng(1).lognormal(0, 2, tiny_model.CHANNELS).astype(np.float32)


@pytest.fixture(scope="module")
def imatrix(importance, tmp_path_factory):
    """An imatrix of that one importance for every tensor of 256 columns, in one token."""
    entries = {}
    for layer in range(tiny_model.LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"):
            entries[f"blk.{layer}.{part}.weight"] = Entry(importance[None], np.ones(1, np.float32))
    path = tmp_path_factory.mktemp("imatrix") / "one.gguf"
    format.write(path, Imatrix(entries, ("one",), 1, 1, "one"), {})
    return path


@pytest.fixture(scope="module")
def tensor(tiny):
    values = {t.name: t for t in gguf.GGUFReader(tiny).tensors}[TENSOR]
    return values.data.astype(np.float32)


@pytest.mark.parametrize("kind", TYPES)
def test_bytes_are_those_of_llama_quantize(
    lib, tools, tiny, tensor, importance, imatrix, tmp_path, kind
):
    quant = tmp_path / "quant.gguf"
    argv = [tools.program("llama-quantize"), "--imatrix", imatrix]
    argv += ["--tensor-type", f"{TENSOR}={kind.lower()}", tiny, quant, "Q4_0", "2"]
    process.run(argv, timeout_s=60)
    written = {t.name: t for t in gguf.GGUFReader(quant).tensors}[TENSOR]
    assert written.tensor_type.name == kind
    raw = lib.quantize(tensor, kind, importance)
    assert raw.tobytes() == written.data.tobytes()
    assert raw.shape == (len(tensor), ggml.row_bytes(kind, tensor.shape[1]))


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_are_those_of_gguf_py(lib, tensor, importance, kind):
    raw = lib.quantize(tensor, kind, importance)
    theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    np.testing.assert_allclose(lib.dequantize(raw, kind), theirs, rtol=1e-6, atol=1e-9)


def test_without_importance_as_llama_quantize_without_an_imatrix(
    lib, tools, tiny, tensor, tmp_path
):
    quant = tmp_path / "quant.gguf"
    process.run([tools.program("llama-quantize"), tiny, quant, "Q4_K_S", "1"], timeout_s=60)
    written = {t.name: t for t in gguf.GGUFReader(quant).tensors}[TENSOR]
    kind = written.tensor_type.name
    assert lib.quantize(tensor, kind, None).tobytes() == written.data.tobytes()


def test_importance_counts(lib, tensor, importance):
    def lost(weighed_by):
        back = lib.dequantize(lib.quantize(tensor, "Q3_K", weighed_by), "Q3_K")
        return float((((tensor - back) ** 2) * importance).sum())

    assert lost(importance) < 0.8 * lost(None)


def test_threads_change_no_byte(lib, tensor, importance):
    whole = lib.quantize(tensor, "IQ2_XS", importance)
    with ThreadPoolExecutor(4) as pool:
        strips = pool.map(
            lambda rows: lib.quantize(rows, "IQ2_XS", importance), np.split(tensor, 8)
        )
        assert np.concatenate(list(strips)).tobytes() == whole.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_an_error_and_no_crash(lib, tensor, importance, value):
    spoilt = tensor.copy()
    spoilt[3, 5] = value
    with pytest.raises(BadModel, match="NaN or infinite"):
        lib.quantize(spoilt, "IQ2_XXS", importance)


@pytest.mark.parametrize("kind", sorted(ggml.NEEDS_IMPORTANCE))
def test_types_that_need_importance_are_refused_without(lib, tensor, kind):
    with pytest.raises(BadModel, match=kind):
        lib.quantize(tensor, kind, None)


def test_rows_that_do_not_fit_are_refused(lib, importance):
    with pytest.raises(BadModel, match="rows of 96 weights are not whole blocks of Q4_K"):
        lib.quantize(np.ones((2, 96), np.float32), "Q4_K", None)
    assert ggml.row_bytes("Q8_0", 96) == 3 * 34
    with pytest.raises(BadModel, match="no weights"):
        lib.quantize(np.ones((2, 256), np.float32), "Q8_K", None)


def test_sizes_are_those_of_the_library(lib, tools):
    library = ctypes.CDLL(str(tools.library_dir / "libggml.so"))
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    for name in lib.conversions:
        assert library.ggml_row_size(ggml.TYPES[name].code, 4096) == ggml.row_bytes(name, 4096)


def test_every_type_of_the_pinned_llama_cpp_can_be_read(lib):
    """Those that gguf-py knows, without two that only activations become."""
    names = {t.name for t in GGML_QUANT_SIZES}
    quantized = {n for n in names if n.startswith(("Q", "IQ", "TQ", "MX"))} - {"Q8_1", "Q8_K"}
    assert quantized | {"F32", "F16", "BF16", "Q2_0"} <= lib.conversions.keys()


def test_ggml_fills_its_tables_before_they_are_read(tools, monkeypatch):
    class Library(ctypes.CDLL):
        def __getattr__(self, name):
            names.append(name)
            return super().__getattr__(name)

    names = []
    monkeypatch.setattr(ggml.ctypes, "CDLL", Library)
    ggml.load(tools)
    assert names.index("ggml_cpu_init") < names.index("ggml_cpu_fp16_to_fp32")


def test_a_file_cut_short_after_its_header_was_read(lib, tmp_path):
    (tmp_path / "a").write_bytes(bytes(100))
    info = TensorInfo("x", (32, 2), "F32", 0, 256)
    with pytest.raises(BadModel, match="x is cut off"):
        weights.read_rows(lib, FileTensor(tmp_path / "a", info), 0, 2)
