"""Tensors that read one input stand in for each other, and only these."""

import numpy as np
import pytest

from imatrix_lab.imatrix import findings, repair, siblings, validate
from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.imatrix.format import REPAIRED, Imatrix
from imatrix_lab.models.gguf import TensorInfo
from tests.imatrix.made_up import entry


def name(role, layer=0):
    return f"blk.{layer}.{role}.weight"


def model(*roles, columns=2, matrices=1):
    shape = (columns, 4, matrices) if matrices > 1 else (columns, 4)
    infos = {name(r): TensorInfo(name(r), shape, "F16", 0, 0) for r in roles}
    tensors = {n: (None, info) for n, info in infos.items()}
    return ModelTensors(frozenset(infos), tensors)


def imatrix(*roles, values=(1, 2), counts=(8,)):
    return Imatrix({name(r): entry(list(values), list(counts)) for r in roles}, ("x",), 2, 4)


@pytest.mark.parametrize(
    ("recorded", "tensors"),
    [
        (["ffn_up"], ["ffn_gate", "ffn_up"]),
        (["ffn_gate"], ["ffn_gate", "ffn_up"]),
        (["ffn_gate_up"], ["ffn_gate", "ffn_up"]),
        (["ffn_up"], ["ffn_gate_up"]),
        (["ffn_up_shexp"], ["ffn_gate_shexp"]),
        (["attn_q"], ["attn_q", "attn_k", "attn_v"]),
        (["attn_v"], ["attn_q", "attn_k", "attn_v"]),
        (["attn_qkv"], ["attn_q", "attn_k", "attn_v"]),
        (["attn_k"], ["attn_qkv"]),
        (["attn_q_a"], ["attn_q_a", "attn_kv_a_mqa"]),
    ],
)
def test_one_stands_for_all_that_read_its_input(recorded, tensors):
    short, whole = imatrix(*recorded), model(*tensors)
    (finding,) = validate.check(short, whole).of(findings.ERROR)
    assert finding.kind == "siblings" and finding.mendable
    mended, changes = repair.repair(short, whole)
    assert set(mended.entries) == {name(role) for role in tensors}
    assert all((e.sums == [[1, 2]]).all() for e in mended.entries.values())
    assert "same input" in mended.metadata[REPAIRED] and changes
    assert not validate.check(mended, whole).of(findings.ERROR)
    assert repair.repair(mended, whole) == (mended, ())


@pytest.mark.parametrize("counts", [(3, 5), (8,)])
def test_experts_too(counts):
    short = imatrix("ffn_up_exps", values=(1, 2, 3, 4), counts=counts)
    whole = model("ffn_gate_exps", "ffn_up_exps", matrices=2)
    mended, _ = repair.repair(short, whole)
    gate, up = (mended.entries[name(f"ffn_{part}_exps")] for part in ("gate", "up"))
    assert np.array_equal(gate.sums, up.sums) and np.array_equal(gate.counts, up.counts)


@pytest.mark.parametrize(
    ("recorded", "tensors", "columns"),
    [
        ("attn_q", ["attn_q", "attn_output"], 2),
        ("ffn_up", ["ffn_up", "ffn_down"], 2),
        ("ffn_up", ["ffn_gate_exps"], 2),
        ("ffn_up_shexp", ["ffn_gate_exps"], 2),
        ("ffn_up", ["ffn_gate"], 4),  # another width is another input
        ("attn_q", ["attn_k_b"], 2),
    ],
)
def test_others_do_not(recorded, tensors, columns):
    assert siblings.lacking(imatrix(recorded).entries, model(*tensors, columns=columns)) == {}


def test_another_layer_does_not():
    entries = {name("ffn_up", 1): entry([1, 2], [8])}
    assert siblings.lacking(entries, model("ffn_gate")) == {}


def test_what_no_sibling_has_stays_missing():
    short, whole = imatrix("ffn_up"), model("ffn_gate", "ffn_up", "ffn_down")
    (before,) = validate.check(short, whole).of(findings.ERROR)
    assert before.kind == "missing" and not before.mendable
    mended, _ = repair.repair(short, whole)
    (after,) = validate.check(mended, whole).of(findings.ERROR)
    assert after.tensors == (name("ffn_down"),)
