"""What is read at once, and copied, where GPUs do not hold a model; the GPUs are made up."""

import dataclasses
import sys
from pathlib import Path

import pytest

from imatrix_lab.errors import UsageError
from imatrix_lab.imatrix import devices
from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.llamacpp.programs import EVERYWHERE, Compute
from imatrix_lab.models import resolve
from imatrix_lab.types import Model
from tests.fakes import fit_params

WORK = devices.Work(256, 0, 64 << 30, 1024, True)
COMPUTE = Compute(1, 512, 2048, 2048)


@pytest.fixture
def two_gpus(tools, tmp_path):
    program = tmp_path / "llama-fit-params"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P {fit_params.__file__} "$@"\n')
    program.chmod(0o755)
    return dataclasses.replace(tools, bin_dir=tmp_path, backend="cuda")


@pytest.fixture
def plan(two_gpus, tiny):
    """A function: name of the fake's model, and work -> a plan."""

    def make(name: str, compute: Compute = COMPUTE, **work: object) -> devices.DevicePlan:
        model = Model("m", Path(name), (), "", resolve.facts((tiny,)), name)
        tensors = ModelTensors(frozenset(), {})
        return devices.plan(two_gpus, model, tensors, compute, dataclasses.replace(WORK, **work))

    return make


def test_a_model_that_fits_is_read_as_it_was_asked(plan):
    found = plan("small.gguf")
    assert (found.placement, found.n_at_once, found.copied_bytes) == (EVERYWHERE, 4, 0)
    assert "nothing is copied" in found.lines()[1]


def test_more_windows_at_once_as_long_as_less_is_copied(plan):
    found = plan("large.gguf")
    totals = {}
    for n in (4, 8, 16):
        at = plan("large.gguf", dataclasses.replace(COMPUTE, n_batch=512 * n), may_grow=False)
        totals[n] = at.copied_bytes * at.n_decodes
        assert at.n_at_once == n
    assert totals[found.n_at_once] == min(totals.values()) < totals[4]
    assert found.placement.gpu_layers < fit_params.LAYERS


def test_fewer_windows_where_the_activations_of_so_many_do_not_fit(plan):
    found = plan("large.gguf", fit_target_mib=11_300)
    assert found.n_at_once == 1 and found.placement.gpu_layers
    with pytest.raises(UsageError):
        plan("large.gguf", fit_target_mib=11_300, may_grow=False)


def test_a_batch_of_the_user_s_is_kept(plan):
    assert plan("large.gguf", may_grow=False).n_at_once == 4


def test_few_windows_are_read_at_once(plan):
    assert plan("large.gguf", n_windows=5).n_at_once == 5


def test_main_memory_bounds_what_is_read_at_once(plan):
    assert plan("large.gguf", memory_bytes=1 << 20).n_at_once == 4


def test_weights_that_main_memory_cannot_keep_are_read_for_each_decode(plan):
    kept, read = plan("large.gguf"), plan("large.gguf", memory_bytes=4 << 30)
    assert kept.n_at_once < read.n_at_once
    assert (kept.n_passes, read.n_passes) == (0, read.n_decodes)
    assert f"{read.n_passes} times" in read.lines()[2]


def test_a_window_in_pieces_stays_in_pieces(plan):
    found = plan("large.gguf", Compute(1, 2048, 512, 512), may_grow=False)
    assert found.n_at_once == 1
    assert found.memory_mib["CUDA0"][1] == fit_params.rest(512)


def test_facts_have_what_lines_say(plan):
    facts = plan("large.gguf").facts()
    assert facts["gpu_layers"] and facts["n_decodes"] == -(-256 // facts["n_windows_at_once"])
    assert facts["device_bytes"].keys() == {"CUDA0", "CUDA1"}
