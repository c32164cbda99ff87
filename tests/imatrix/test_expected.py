"""What a model's quantizer looks for."""

import gguf
import numpy as np

from imatrix_lab.imatrix import expected, validate
from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.imatrix.format import Imatrix
from imatrix_lab.models.gguf import TensorInfo, read_header
from tests.imatrix.made_up import entry


def tensors(*names):
    return [TensorInfo(n, (256, 256), "F16", 0, 2 * 256 * 256) for n in names]


def test_what_a_model_never_multiplies_is_not_expected():
    found = expected.expected_tensors(
        tensors(
            "token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.0.attn_kv_b.weight",
            "blk.0.attn_k.weight", "blk.3.attn_k.weight", "blk.3.attn_q.weight",
            "blk.0.ffn_gate_inp.weight", "blk.0.attn_norm.weight", "blk.4.nextn.eh_proj.weight",
        ),
        n_layers=5, n_skipped=1, n_shared_kv=2,
    )  # fmt: skip
    assert found == {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.3.attn_q.weight"}


def test_which_columns_have_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(expected, "_SLAB_BYTES", 100)  # several slabs
    weights = np.ones((2, 5, 8), np.float16)
    weights[0, :, 3] = -0.0
    weights[1, :, 4] = 0
    weights[1, 4, 4] = 0.5  # in the last row only
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("half", weights)
    writer.add_tensor("whole", weights.astype(np.float32))
    writer.add_tensor(
        "bytes", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "m.gguf")
    model = ModelTensors(frozenset(), {t.name: (header.path, t) for t in header.tensors})
    asked = np.zeros((2, 8), bool)
    asked[:, [3, 4]] = True
    for name in ("half", "whole"):
        found = model.with_weights(name, asked)
        assert np.argwhere(found).tolist() == [[0, 4], [1, 3], [1, 4]]
    assert model.with_weights("bytes", np.ones((1, 32), bool)) is None


def test_vectors_of_a_model_are_nothing_to_weigh(tiny, as_model):
    known = expected.of(as_model(tiny))
    assert "blk.0.attn_norm.weight" not in known.tensors
    assert "blk.0.attn_q.weight" in known.tensors
    norm = Imatrix({"blk.0.attn_norm.weight": entry([1, 1], [8])}, (), 1, 8)
    assert "foreign" in {f.kind for f in validate.check(norm, known).all}
