"""Kernels are compiled for this processor, unless llama.cpp works only with less than it has."""

from dataclasses import replace

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.llamacpp import native


@pytest.mark.parametrize(
    ("build", "full"),
    [("native", True), ("without AMX", True), ("without AVX-512", False), ("portable", False)],
)
def test_kernels_leave_out_what_the_build_does(tools, tmp_path, build, full):
    source = tmp_path / "nine.cpp"
    source.write_text('extern "C" int nine() { return 9; }')
    session = Session(Store(tmp_path / "cache"), Silent())
    library = native.compiled(source, "nine", replace(tools, build=build), session)
    assert library.nine() == 9
    (manifest,) = (tmp_path / "cache" / "kernel").glob("*/manifest.json")
    assert ("=native" in manifest.read_text()) == full


@pytest.mark.parametrize("place", ["", "kernel", "kernel/*", "kernel/*/*.so"])
def test_code_that_anyone_may_replace_is_not_loaded(tools, tmp_path, place):
    source, root = tmp_path / "nine.cpp", tmp_path / "cache"
    source.write_text('extern "C" int nine() { return 9; }')
    session = Session(Store(root), Silent())
    native.compiled(source, "nine", tools, session)
    (path,) = root.glob(place) if place else (root,)
    path.chmod(path.stat().st_mode | 0o022)
    with pytest.raises(ImatrixLabError, match="may replace") as caught:
        native.compiled(source, "nine", tools, session)
    assert caught.value.where == str(path)
    path.chmod(path.stat().st_mode & ~0o002)  # a group that is trusted
    assert native.compiled(source, "nine", tools, session).nine() == 9
