"""A build counts once every program and the bindings have worked on this machine."""

import shutil
from dataclasses import replace

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import ToolFailed
from imatrix_lab.llamacpp import programs, trial
from imatrix_lab.models.gguf import read_header


def test_the_build_works_on_a_model_of_every_weight_type(tools, tmp_path):
    trial.try_build(tools, tmp_path, Silent())
    types = {t.type_name for t in read_header(tmp_path / "mixed.gguf").tensors}
    assert set(trial.WEIGHT_TYPES) <= types
    assert (tmp_path / "trial.imatrix.gguf").is_file()


@pytest.mark.parametrize("name", ["llama-imatrix", "llama-perplexity", "llama-server"])
def test_a_program_that_dies_is_named_with_its_signal(tools, tmp_path, name, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in programs.PROGRAMS:
        (folder / program).symlink_to(tools.program(program))
    (folder / name).unlink()
    (folder / name).write_text("#!/bin/sh\nkill -ILL $$\n")
    (folder / name).chmod(0o755)
    if name != "llama-imatrix":  # what comes before takes seconds, and works
        monkeypatch.setattr(trial, "WEIGHT_TYPES", ("F16", "Q8_0", "Q4_K"))
    with pytest.raises(ToolFailed, match=f"{name} .*SIGILL") as caught:
        trial.try_build(replace(tools, bin_dir=folder), tmp_path, Silent())
    assert caught.value.crashed and "doctor" in caught.value.fix
    shutil.rmtree(folder)
