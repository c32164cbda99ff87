"""Sizes as they are asked for, and as llama-quantize makes them: to the byte."""

import dataclasses
import random

import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.errors import UsageError
from imatrix_lab.imatrix import format
from imatrix_lab.llamacpp import compute, ggml, programs
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import run, sizes
from imatrix_lab.types import ComputeOptions
from tests import tiny_model

TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_XS", "F16")


@pytest.mark.parametrize(
    ("text", "label", "name"),
    [
        ("3.5GiB", "size:3.5GiB", "3.5GiB-as-Q4_K_S"),
        ("3.50 gib", "size:3.5GiB", "3.5GiB-as-Q4_K_S"),
        ("4GB", "size:4GB", "4GB-as-Q4_K_S"),
        ("123456789B", "size:123456789B", "123456789B-as-Q4_K_S"),
        ("4.5bpw", "size:4.5bpw", "4.5bpw-as-Q4_K_S"),
        ("Q4_K", "size:Q4_K_M", "as-Q4_K_M"),
        ("size:q3_k_s", "size:Q3_K_S", "as-Q3_K_S"),
    ],
)
def test_a_size_is_named_in_one_way(text, label, name):
    assert sizes.parse(text) == label == sizes.parse(label) and sizes.is_size(label)
    assert sizes.in_name(label, "Q4_K_S") == name
    # what the Hub and others take for the type of a file is its last word
    assert programs.quant_types([name.rpartition("-")[2]])


@pytest.mark.parametrize("text", ["", "3.5", "0GiB", "GiB", "-1GB", "1e9B", "Q4_K_X", "4.5.1GiB"])
def test_what_is_no_size_is_told(text):
    with pytest.raises(UsageError) as error:
        sizes.parse(text)
    assert "--size" in error.value.fix


def test_bytes_of_a_size():
    assert sizes.n_bytes("size:3.5GiB", 1, 1) == 3.5 * 2**30
    assert sizes.n_bytes("size:4GB", 1, 1) == 4 * 10**9
    assert sizes.n_bytes("size:4.5bpw", 1000, 77) == 77 + 562
    assert sizes.n_bytes("size:1234567890123B", 1, 1) == 1234567890123


def spec_of(model_path, imatrix_path, mix, tmp_path, store, **metadata):
    session = Session(store, Silent())
    model = resolve.resolve(str(model_path), session)
    imatrix = imatrix_path and tune.existing_imatrix(imatrix_path, model, Silent())
    options = run.Options(compute.compute_for(model.facts, ComputeOptions("cpu", threads=1)))
    return run.QuantSpec(model, imatrix, "size:1GiB", options, metadata, mix=mix), session


@pytest.fixture(params=["llama", "experts", "odd", "capitals"])
def model_path(request, tmp_path):
    settings = {
        "llama": {},
        "experts": {"experts": 4},
        "odd": {"channels": 320},
        "capitals": {"extra": odd_names},
    }
    return tiny_model.write(tmp_path / f"{request.param}-f16.gguf", **settings[request.param])


def odd_names(writer):
    """Names with capitals and signs, one beginning with another, and a dimension of 1."""
    for name in ("blk.0.Odd-One.weight", "blk.0.attn_q.weight.weight", "xblk.0.attn_q.weight"):
        writer.add_tensor(name, np.ones((16, 256), np.float16))
    writer.add_tensor("blk.0.row.weight", np.ones((1, 256), np.float16))


@pytest.mark.parametrize("seed", range(2))
def test_types_and_bytes_are_those_chosen(tools, model_path, seed, tmp_path, own_store):
    rng = random.Random(seed)
    standard = {}
    types = {}
    spec, session = spec_of(model_path, None, None, tmp_path, own_store, **{"imatrix_lab.x": "æ"})
    standard = run.standard_types(tools, spec.model, "Q4_K_M", spec.options, None)
    shapes = {t.name: t.shape for t in sizes.tensors(spec.model)}
    for name in standard:
        fitting = [t for t in TYPES if shapes[name][0] % ggml.TYPES[t].block == 0]
        types[name] = rng.choice(fitting)
    spec = dataclasses.replace(spec, mix=run.Mix("Q4_K_M", types))
    facts = run.quantize(tools, spec, session)
    made = {t.name: t for t in read_header(facts.path).tensors}
    assert {name: made[name].type_name for name in types} == types
    header = sizes.header_bytes(spec.model, None, spec.metadata)
    data = sum(sizes.padded(made[name].size_bytes) for name in types)
    assert facts.size_bytes == sizes.fixed_bytes(spec.model, header, types) + data
    assert run.types_path(facts.path).read_text() == programs.types_file(types)
    assert facts.name == f"{spec.model.label}-1GiB-as-Q4_K_M.gguf" and facts.fallback == ()
    assert resolve.facts((facts.path,)).file_type == "Q4_K_M"


@pytest.mark.parametrize(
    ("name", "datasets"),
    [
        ("nb.gguf", ()),
        ("nb.gguf", ("first", "second")),
        ("long.gguf", ("å" * 100,)),
        ("nb.dat", ("x",)),
    ],
)
def test_what_an_imatrix_adds_is_counted(tools, tiny, name, datasets, tmp_path, own_store):
    header = read_header(tiny)
    entries = {
        t.name: format.Entry(np.ones((1, t.shape[0]), np.float32), np.full(1, 512, np.float32))
        for t in header.tensors
        if len(t.shape) > 1 and t.name.startswith("blk.")
    }
    format.write(tmp_path / name, format.Imatrix(entries, datasets, 4, 128))
    mix = run.Mix("Q3_K_S", {"blk.0.ffn_up.weight": "Q8_0"})
    spec, session = spec_of(tiny, tmp_path / name, mix, tmp_path, own_store)
    path = run.quantize(tools, spec, session).path
    made = read_header(path).tensors
    in_file = sizes.header_bytes(spec.model, spec.imatrix, spec.metadata)
    assert in_file == min(t.offset for t in made)
    assert path.stat().st_size == in_file + sum(sizes.padded(t.size_bytes) for t in made)


def test_an_important_choice_is_another_file(tools, tiny, tmp_path, own_store):
    one, _ = spec_of(tiny, None, run.Mix("Q4_K_M", {"output.weight": "Q6_K"}), tmp_path, own_store)
    other = dataclasses.replace(one, mix=run.Mix("Q4_K_M", {"output.weight": "Q5_K"}))
    plain = dataclasses.replace(one, mix=None, quant_type="Q4_K_M")
    keys = [run.inputs(spec, tools) for spec in (one, other, plain)]
    assert keys[0] != keys[1] and "types" not in keys[2]
