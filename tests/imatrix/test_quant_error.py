"""Column sums of what the real llama-quantize made, against gguf-py's dequantization."""

import tracemalloc

import gguf
import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import BadModel
from imatrix_lab.imatrix import quant_error
from imatrix_lab.models.gguf import read_header
from tests import tiny_model

TYPES = (
    "F32", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_1", "Q4_K_M", "Q4_0", "IQ4_NL", "IQ4_XS",
    "MXFP4_MOE", "Q3_K_S", "IQ3_S", "Q2_K", "IQ2_XXS", "TQ1_0",
)  # fmt: skip


def written(kernel, model, quant, out, threads=2):
    """Write the sums and read them all back."""
    out.mkdir(exist_ok=True)
    quant_error.write(out, kernel, model, quant, threads, Silent())
    return {name: get() for name, get in quant_error.read(out / quant_error.FILE).items()}


def matrices(path):
    """Each tensor of two dimensions or more by name: float64 (matrices, rows, columns)."""
    found = {}
    for t in gguf.GGUFReader(path).tensors:
        if len(t.shape) > 1:
            values = gguf.dequantize(t.data, t.tensor_type).astype(np.float64)
            found[t.name] = values.reshape(-1, *values.shape[-2:])
    return found


def compare(found, model, quant):
    """Hold sums against the same in float64 by numpy."""
    ours, theirs = matrices(model), matrices(quant)
    assert found.keys() == {n for n in ours if "ffn_gate_inp" not in n}
    for name, columns in found.items():
        w, q = ours[name], theirs[name]
        np.testing.assert_allclose(columns.power, (w**2).sum(1), rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(columns.error, ((w - q) ** 2).sum(1), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("kind", TYPES)
def test_dense_against_gguf_py(tiny, imatrix_of, quantized, loss_kernel, as_model, tmp_path, kind):
    quant = quantized(tiny, kind, imatrix_of(tiny, "nb"))
    found = written(loss_kernel, as_model(tiny), as_model(quant), tmp_path / "out")
    compare(found, tiny, quant)
    errors = {name: c.error.sum() for name, c in found.items()}
    assert all(e == 0 for e in errors.values()) == (kind == "F32")


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q2_K"])
def test_experts_against_gguf_py(moe, imatrix_of, quantized, loss_kernel, as_model, tmp_path, kind):
    quant = quantized(moe, kind, imatrix_of(moe, "nb"))
    found = written(loss_kernel, as_model(moe), as_model(quant), tmp_path / "out")
    compare(found, moe, quant)
    assert found["blk.0.ffn_up_exps.weight"].error.shape == (4, tiny_model.CHANNELS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_model_against_itself_is_exactly_zero(loss_kernel, as_model, tmp_path, dtype):
    model = as_model(tiny_model.write(tmp_path / "m.gguf", dtype=dtype))
    for columns in written(loss_kernel, model, model, tmp_path / "out").values():
        assert not columns.error.any() and columns.power.all()


def test_bytes_do_not_depend_on_the_number_of_workers(
    moe, quantized, loss_kernel, as_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(quant_error, "BLOCK_WEIGHTS", 5000)
    model, quant = as_model(moe), as_model(quantized(moe, "Q3_K_S", None))
    found = set()
    for threads in (1, 2, 7):
        written(loss_kernel, model, quant, tmp_path / "out", threads)
        found.add((tmp_path / "out" / quant_error.FILE).read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("block", [1, 10_000, 1 << 40])
def test_blocks_of_any_size_come_to_the_same(
    moe, quantized, loss_kernel, as_model, tmp_path, monkeypatch, block
):
    monkeypatch.setattr(quant_error, "BLOCK_WEIGHTS", block)
    quant = quantized(moe, "Q3_K_S", None)
    compare(written(loss_kernel, as_model(moe), as_model(quant), tmp_path / "o"), moe, quant)


def one_tensor(path, values, name="blk.0.ffn_up.weight"):
    """Write a file that a header reader takes for a model."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_memory_is_a_few_blocks_however_large_the_tensor(loss_kernel, as_model, tmp_path):
    n_weights = 1 << 26
    values = np.ones((n_weights // 8192, 8192), np.float16)
    model = as_model(one_tensor(tmp_path / "large.gguf", values))
    del values
    read_header(model.path)  # what imports cost is not counted
    threads = 2
    tracemalloc.start()
    try:
        found = written(loss_kernel, model, model, tmp_path / "out", threads)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    both_sides = 2 * 2 * quant_error.BLOCK_WEIGHTS
    assert peak < (threads + 1) * both_sides < 2 * n_weights / 2
    assert found["blk.0.ffn_up.weight"].power.tolist() == [[8192.0] * 8192]


# -- what does not belong together


def test_a_quant_of_other_shapes_is_refused(tiny, quantized, loss_kernel, as_model, tmp_path):
    wide = tiny_model.write(tmp_path / "wide.gguf", feed_forward=768)
    with pytest.raises(BadModel, match=r"ffn_gate.weight has the shape \[256, 768\], not"):
        written(loss_kernel, as_model(tiny), as_model(wide), tmp_path / "out")


def test_a_quant_without_a_tensor_is_refused(tiny, moe, loss_kernel, as_model, tmp_path):
    with pytest.raises(BadModel, match=r"ffn_gate.weight is missing"):
        written(loss_kernel, as_model(tiny), as_model(moe), tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(loss_kernel, as_model, tmp_path, value):
    values = np.ones((512, 256), np.float16)
    model = as_model(one_tensor(tmp_path / "a.gguf", values))
    values[300, 5] = value
    spoilt = as_model(one_tensor(tmp_path / "b.gguf", values))
    with pytest.raises(BadModel, match=r"ffn_up.weight has NaN or infinite"):
        written(loss_kernel, model, spoilt, tmp_path / "out")


def test_integers_are_no_weights(loss_kernel, as_model, tmp_path):
    model = as_model(one_tensor(tmp_path / "a.gguf", np.ones((8, 256), np.int32)))
    with pytest.raises(BadModel, match="is I32: not weights"):
        written(loss_kernel, model, model, tmp_path / "out")
