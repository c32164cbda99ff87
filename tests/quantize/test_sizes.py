"""Sizes of files as llama-quantize makes them: to the byte."""

import dataclasses
import random

import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.imatrix import format
from imatrix_lab.llamacpp import compute, ggml, programs
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import run, sizes
from imatrix_lab.types import ComputeOptions
from tests import tiny_model

TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_XS", "F16")


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
        ("path.gguf", ("/mnt/texts/nb/all.txt",)),
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
    more = {"general.languages": ("nb", "se"), "general.base_model.count": 1}
    spec, session = spec_of(tiny, tmp_path / name, mix, tmp_path, own_store, **more)
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
