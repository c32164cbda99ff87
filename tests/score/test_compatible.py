"""What may be scored against what; by headers alone, before any work."""

import dataclasses

import numpy as np
import pytest

from imatrix_lab.errors import BadModel
from imatrix_lab.score import compatible
from tests import tiny_model
from tests.score import made

REVERSED = list(reversed(tiny_model.PIECES))


@pytest.fixture
def model(store, reference):
    return made.load(reference, store)


def other(tmp_path, store, **rest):
    return made.load(tiny_model.write(tmp_path / "other-f16.gguf", **rest), store)


def test_quants_of_the_reference_are_welcome(model, quants, store):
    assert compatible.check(model, [model, *(made.load(q, store) for q in quants.values())]) == []


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ({"pieces": REVERSED}, "tokenizer.ggml.tokens differs"),
        ({"pieces": [*tiny_model.PIECES, "x"]}, "tokenizer.ggml.tokens differs"),
        ({"bos": False}, "tokenizer.ggml.add_bos_token differs .False, in the reference True."),
        ({"architecture": "qwen2"}, "general.architecture differs .'qwen2'.* 'llama'"),
        ({"feed_forward": 256}, "llama.feed_forward_length differs .256, in the reference 512."),
        ({"experts": 4}, "tensor blk.0.ffn_down.weight is missing, in the reference"),
    ],
)
def test_another_model_is_not_a_quant(model, tmp_path, store, rest, said):
    with pytest.raises(BadModel, match=said) as caught:
        compatible.check(model, [model, other(tmp_path, store, **rest)])
    assert "other is not a quant of the reference" in str(caught.value)
    assert str(tmp_path) in str(caught.value) and "--reference" in str(caught.value)


def test_norms_that_differ_are_noted(model, tmp_path, store):
    """Another fine-tune has the same shapes."""
    (note,) = compatible.check(model, [model, other(tmp_path, store, norm_weight=1.01)])
    assert note.startswith("other: its norm weights are not the reference's")


def test_a_model_of_other_weights_and_the_same_norms(model, tmp_path, store):
    with pytest.raises(BadModel, match=r"blk\.0\.attn_k\.weight is another"):
        compatible.check(model, [other(tmp_path, store, seed=1)])


def test_a_split_reference(tools, reference, quants, tmp_path, store):
    from imatrix_lab.core import process

    argv = [tools.program("llama-gguf-split"), "--split-max-tensors", "6"]
    process.run([*argv, reference, tmp_path / "parts"], timeout_s=60)
    parts = sorted(tmp_path.glob("parts-*.gguf"))
    assert len(parts) > 2
    whole = made.load(parts[1], store)
    assert whole.path == parts[0]
    assert compatible.check(whole, [made.load(quants["Q2_K"], store)]) == []
    assert compatible.check(made.load(quants["Q2_K"], store), [whole]) == []
    tuned = other(tmp_path, store, norm_weight=1.01)
    assert len(compatible.check(whole, [tuned])) == 1


@pytest.mark.parametrize(
    ("key", "recurrent"),
    [
        ("llama.ssm.conv_kernel", True),
        ("rwkv6.wkv.head_size", True),
        ("lfm2.shortconv.l_cache", True),
        ("llama.attention.head_count", False),
    ],
)
def test_models_with_a_state_are_known_by_their_keys(model, tmp_path, key, recurrent):
    import gguf

    path = tmp_path / "header.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32(key, 4)
    writer.add_tensor("x", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert compatible.is_recurrent(dataclasses.replace(model, path=path)) is recurrent
    assert not compatible.is_recurrent(model)
