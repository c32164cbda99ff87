"""What may not reach the quantizer."""

import numpy as np
import pytest

from imatrix_lab.errors import BadImatrix
from imatrix_lab.gguf_file import TensorInfo
from imatrix_lab.imatrix import check, file


def entry(sums, counts):
    sums = np.asarray(sums, np.float32)
    return file.Entry(sums.reshape(len(counts), -1), np.asarray(counts, np.float32))


def matrix(**entries):
    return file.Imatrix(entries, ("x",), 2, 4)


GOOD = {"a": entry([1, 2], [8]), "b": entry([1, 0], [8])}


def test_a_good_one_passes():
    assert check.check(matrix(**GOOD), {"a", "b"}, 8).errors == ()


@pytest.mark.parametrize(
    ("name", "bad", "words"),
    [
        ("nan", entry([1, np.nan], [8]), "NaN"),
        ("infinite", entry([1, np.inf], [8]), "infinite"),
        ("zero", entry([0, 0], [8]), "zero throughout"),
        ("negative", entry([1, -1], [8]), "negative"),
        ("short", entry([1, 1], [4]), "saw 4 tokens, not 8"),
        ("nan count", entry([1, 1], [np.nan]), "NaN"),
    ],
)
def test_a_bad_tensor_is_named(name, bad, words):
    (error,) = check.check(matrix(**GOOD, bad=bad), {"a", "b", "bad"}, 8).errors
    assert "bad" in error and words in error


def test_missing_tensors_are_counted_and_named():
    (error,) = check.check(matrix(**GOOD), {"a", "b", "c", "d"}, 8).errors
    assert "2 of 4" in error and "c" in error


def test_unhit_experts_are_named_and_are_no_error():
    experts = entry([1, 1, 0, 0, 1, 1], [3, 0, 5])
    findings = check.check(matrix(**GOOD, experts=experts), {"a"}, 8)
    assert findings.errors == () and findings.unhit == (("experts", (1,)),)


def test_round_trip(tmp_path):
    file.write(tmp_path / "i.gguf", matrix(**GOOD), {"imatrix_lab.language": "nb"})
    back = file.read(tmp_path / "i.gguf")
    assert back.language == "nb" and back.datasets == ("x",)
    assert (back.chunk_count, back.chunk_size) == (2, 4)
    for name, e in GOOD.items():
        assert np.array_equal(back.entries[name].sums, e.sums)
        assert np.array_equal(back.entries[name].counts, e.counts)


def test_not_an_imatrix(tiny, tmp_path):
    with pytest.raises(BadImatrix, match="not an importance matrix"):
        file.read(tiny)
    torn = tmp_path / "torn.gguf"
    file.write(torn, matrix(**GOOD), {})
    torn.write_bytes(torn.read_bytes()[:-40])
    with pytest.raises(BadImatrix):
        file.read(torn)


def tensors(*names):
    return [TensorInfo(n, (256, 256), "F16", 0, 2 * 256 * 256) for n in names]


def test_what_a_model_never_multiplies_is_not_expected():
    found = check.expected_tensors(
        tensors(
            "token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.0.attn_kv_b.weight",
            "blk.0.attn_k.weight", "blk.3.attn_k.weight", "blk.3.attn_q.weight",
            "blk.0.ffn_gate_inp.weight", "blk.0.attn_norm.weight", "blk.4.nextn.eh_proj.weight",
        ),
        n_layers=5, n_skipped=1, n_shared_kv=2,
    )  # fmt: skip
    assert found == {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.3.attn_q.weight"}


def test_a_weight_used_twice_a_token_counts_twice():
    looped = matrix(**GOOD, twice=entry([1, 1], [16]))
    assert check.check(looped, {"a", "b", "twice"}, 8).errors == ()
    other = matrix(**GOOD, router=entry([1, 1], [3]))
    assert check.check(other, {"a", "b"}, 8).errors == ()
