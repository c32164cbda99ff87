"""What may be scored against what; by headers alone, before any work."""

import dataclasses

import gguf
import numpy as np
import pytest

from imatrix_lab.errors import BadModel
from imatrix_lab.models import effective, scaling
from imatrix_lab.models.gguf import read_header
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


def test_a_reference_with_fewer_bits_than_the_quant_is_suspected(model, quants, store):
    small, smaller = (made.load(quants[name], store) for name in ("Q4_K_M", "Q2_K"))
    assert compatible.suspicions(model, [small, smaller]) == []
    assert compatible.suspicions(small, [smaller]) == []
    for reference, quant in ((small, model), (smaller, small)):
        (warning,) = compatible.suspicions(reference, [quant])
        assert "swapped" in warning and "--reference" in warning
    (warning,) = compatible.suspicions(model, [small, model])
    assert "control" in warning and model.path.name in warning


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


def eos_added(writer, value=False):
    writer.add_add_eos_token(value)


@pytest.mark.parametrize(
    "extra",
    [
        eos_added,
        lambda w: w.add_add_space_prefix(True),
        lambda w: w.add_add_sep_token(False),
        lambda w: w.add_tokenizer_pre("default"),
        lambda w: w.add_remove_extra_whitespaces(False),
        lambda w: w.add_rope_freq_base(10000.0),
        lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.NONE),
        lambda w: w.add_rope_scaling_factor(1.0),
        lambda w: w.add_rope_scaling_orig_ctx_len(2048),
        lambda w: w.add_key_length(64),
        lambda w: w.add_value_length(64),
        lambda w: w.add_vocab_size(999),
        lambda w: w.add_causal_attention(True),
        lambda w: w.add_pad_token_id(0),
        lambda w: w.add_description("by somebody else"),
        lambda w: w.add_chat_template("{{ messages }}"),
    ],
)
def test_a_default_that_is_written_out_is_the_same_as_none(model, tmp_path, store, extra):
    plain = made.load(tiny_model.write(tmp_path / "plain-f16.gguf"), store)
    explicit = other(tmp_path, store, extra=extra)
    assert compatible.check(plain, [explicit]) == compatible.check(explicit, [plain]) == []


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        (lambda w: eos_added(w, True), "tokenizer.ggml.add_eos_token"),
        (lambda w: w.add_add_space_prefix(False), "tokenizer.ggml.add_space_prefix"),
        (lambda w: w.add_rope_freq_base(1e6), "llama.rope.freq_base"),
        (lambda w: w.add_rope_scaling_factor(8.0), "llama.rope.scaling.factor"),
        (lambda w: w.add_key_length(128), "llama.attention.key_length"),
    ],
)
def test_what_is_not_the_default_counts_in_both_directions(tmp_path, store, extra, key):
    plain = made.load(tiny_model.write(tmp_path / "plain-f16.gguf"), store)
    explicit = other(tmp_path, store, extra=extra)
    for reference, quant in ((plain, explicit), (explicit, plain)):
        with pytest.raises(BadModel, match=key) as caught:
            compatible.check(reference, [quant])
        assert "differs" in caught.value.what


def test_another_end_of_text_changes_no_score(tmp_path, store):
    plain = made.load(tiny_model.write(tmp_path / "plain-f16.gguf"), store)
    (note,) = compatible.check(plain, [other(tmp_path, store, eos=3)])
    assert "eos_token_id is 3, in the reference 2" in note


@pytest.mark.parametrize(("kind", "pairs"), [("gpt2", [("qwen2", "deepseek-r1-qwen")])])
def test_pre_tokenizers_have_several_names(tmp_path, kind, pairs):
    def write(name, pre):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre(pre)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return effective.tokenizer(read_header(tmp_path / name))

    for a, b in pairs:
        assert write("a.gguf", a) == write("b.gguf", b)
    assert write("a.gguf", "qwen2")["add_bos_token"] is False
    assert write("b.gguf", "llama3")["add_bos_token"] is True


def test_one_number_and_a_list_of_the_same_for_each_layer(tmp_path):
    def write(name, value):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_head_count_kv(value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return effective.hyperparameters(read_header(tmp_path / name))

    assert write("a.gguf", 8) == write("b.gguf", [8] * 80) != write("c.gguf", [8] * 79 + [4])


def test_a_repeated_embedding_is_no_other_output(tmp_path):
    rng = np.random.default_rng(0)
    embedding, unrelated = rng.normal(size=(2, 64, 32)).astype(np.float32)

    def tensors(name, **arrays):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        for key, values in arrays.items():
            writer.add_tensor(f"{key}.weight", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return {t.name: (tmp_path / name, t) for t in read_header(tmp_path / name).tensors}

    tied = tensors("a.gguf", token_embd=embedding)
    repeated = tensors("b.gguf", token_embd=embedding, output=embedding)
    other_output = tensors("c.gguf", token_embd=embedding, output=unrelated)
    assert compatible._is_tied_output("output.weight", tied, repeated)
    assert compatible._is_tied_output("output.weight", repeated, tied)
    assert not compatible._is_tied_output("output.weight", tied, other_output)


def test_norms_that_differ_are_noted(model, tmp_path, store):
    """Another fine-tune has the same shapes."""
    (note,) = compatible.check(model, [model, other(tmp_path, store, norm_weight=1.01)])
    assert note.startswith("other: its norm weights are not the reference's")


def test_channels_that_were_scaled_are_not(model, tmp_path, store):
    def said(writer):
        writer.add_string(scaling.SCALED, "version 1")

    assert not compatible.check(model, [other(tmp_path, store, norm_weight=1.01, extra=said)])


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
