"""Where tensors lie: what llama-fit-params prints, what is made of it, what llama.cpp is told."""

import dataclasses
import sys
from pathlib import Path

import pytest

from imatrix_lab.errors import MissingTool, UsageError
from imatrix_lab.llamacpp import native, offload, programs
from imatrix_lab.llamacpp.programs import EVERYWHERE, Compute, Placement
from imatrix_lab.models.tokenizer import silence
from imatrix_lab.types import ComputeOptions
from tests.fakes import fit_params

LAYOUT = offload.Layout(512, 512)
LARGE, SMALL = Path("large.gguf"), Path("small.gguf")


@pytest.fixture
def two_gpus(tools, tmp_path):
    """The toolchain of a machine with two GPUs, but for the GPUs."""
    program = tmp_path / "llama-fit-params"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P {fit_params.__file__} "$@"\n')
    program.chmod(0o755)
    return dataclasses.replace(tools, bin_dir=tmp_path, backend="cuda")


def planned(tools, models, **options):
    return offload.planned(tools, models, LAYOUT, ComputeOptions("cuda", **options))


def used_mib(placement, layer_mib):
    """MiB of each device by the fake's rule."""
    return [int(n) * layer_mib + fit_params.rest(512) for n in placement.tensor_split.split(",")]


def test_what_fits_is_left_to_llama_cpp(two_gpus):
    assert planned(two_gpus, [SMALL], fit_target_mib=1024) == EVERYWHERE


def test_layers_that_fit_each_device(two_gpus):
    placement = planned(two_gpus, [LARGE], fit_target_mib=2000)
    # 22,000 and 10,000 MiB, rounded down to 256, less 300
    assert placement.tensor_split == "21,9" and placement.gpu_layers == 30
    assert placement.override_tensor == r"blk\.11\.ffn_(gate|up|gate_up|down).*=CPU"
    assert "30 layers" in offload.in_words(placement)


def test_a_little_less_free_memory_is_the_same_plan(two_gpus):
    plans = {planned(two_gpus, [LARGE], fit_target_mib=t) for t in (1350, 1400, 1450)}
    assert len(plans) == 1


def test_models_in_memory_together_have_the_same_layers_there(two_gpus):
    placement = planned(two_gpus, [LARGE, SMALL, SMALL], fit_target_mib=1000)
    pairs = zip(used_mib(placement, 1000), used_mib(placement, 500), strict=True)
    together = [large + 2 * small for large, small in pairs]
    room = [free - 1000 for free in fit_params.FREE_MIB]
    assert all(r - 2 * 1000 - 600 < t <= r for t, r in zip(together, room, strict=True))


def test_where_not_even_activations_fit_it_is_said_before_the_work(two_gpus):
    layout = offload.Layout(8192, 8192)  # 4,140 MiB on each device
    options = ComputeOptions("cuda", fit_target_mib=9000)
    with pytest.raises(UsageError, match="4140 MiB on CUDA1") as caught:
        offload.planned(two_gpus, [LARGE], layout, options)
    assert "--batch" in caught.value.fix and "--gpu-layers 0" in caught.value.fix


@pytest.mark.parametrize("options", [{"gpu_layers": 7}, {"override_tensor": "ffn_down=CPU"}])
def test_what_the_user_says_is_not_planned(two_gpus, options):
    assert planned(two_gpus, [LARGE], **options) == Placement(**options)


def test_without_a_gpu_nothing_is_asked(tools):
    nowhere = dataclasses.replace(tools, bin_dir=Path("/nowhere"))
    for options in (
        ComputeOptions("cpu"),
        ComputeOptions("blas"),
        ComputeOptions("cuda", gpu_layers=0),
    ):
        assert offload.planned(nowhere, [LARGE], LAYOUT, options) == Placement(0)


def test_a_gpu_build_without_a_device_does_not_silently_use_the_processor(tools):
    with pytest.raises(MissingTool) as caught:
        planned(dataclasses.replace(tools, backend="cuda"), [LARGE], gpu_layers=7)
    assert "--backend cpu" in caught.value.fix


def test_devices_are_part_of_signatures(two_gpus, tools):
    assert two_gpus.signature()["devices"] == "NVIDIA X, NVIDIA X"
    assert "devices" not in tools.signature()
    assert dataclasses.replace(tools, backend="cuda").signature()["devices"] == "none"


def test_the_real_program_says_what_is_parsed(tools, tiny):
    placement = offload._fitted(tools, tiny, LAYOUT, "0")
    assert placement == EVERYWHERE
    used = offload.memory_mib(tools, tiny, LAYOUT, Placement(0))
    assert used.keys() == {"Host"} and used["Host"][0] > 0


def test_programs_are_told_as_llama_cpp_names_it():
    placement = Placement(12, "3,9", "a=CPU,b=CUDA1")
    assert placement.argv() == ["-ngl", "12", "-ts", "3,9", "-ot", "a=CPU,b=CUDA1"]
    assert Placement(0).argv() == ["-ngl", "0", "-dev", "none"]
    assert EVERYWHERE.argv() == []
    assert Compute(1, 512, 512, 512, *placement).placement == placement


def test_signatures_name_what_is_not_the_default():
    assert Placement(0).signature() == {"gpu_layers": 0}
    assert EVERYWHERE.signature() == {"gpu_layers": None}
    assert Placement(3, "1,2", "a=CPU").signature().keys() == {
        "gpu_layers", "tensor_split", "override_tensor"
    }  # fmt: skip


def test_the_library_takes_a_placement(tools, tiny):
    llama = tools.bindings()
    silence(llama)
    for placement in (Placement(0), Placement(2, "1", "ffn_down=CPU,ffn_up=CPU")):
        model = native.load_model(llama, tiny, placement)
        assert model
        llama.llama_model_free(model)
    with pytest.raises(UsageError, match="CUDA7") as caught:
        native.load_model(llama, tiny, Placement(override_tensor="ffn_down=CUDA7"))
    assert "CPU" in caught.value.fix


def test_a_server_fits_itself_where_nothing_is_said():
    argv = [
        programs.server_argv(Path("x"), Path("m.gguf"), 2, 512, None, p)
        for p in (EVERYWHERE, Placement(7))
    ]
    assert [words[words.index("-fit") + 1] for words in argv] == ["on", "off"]
    assert "-ngl" not in argv[0] and argv[1][-2:] == ["-ngl", "7"]
