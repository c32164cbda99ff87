"""Files put into place: what a killed run has left of them goes."""

import os

import pytest

from imatrix_lab.core import files


@pytest.mark.parametrize("has_links", [True, False])
def test_what_killed_runs_left_of_a_copy_goes_once_it_is_old(tmp_path, monkeypatch, has_links):
    """A copy of another file stays, and one that may be under way on another machine."""
    source, target = tmp_path / "source", tmp_path / "out" / "a [1].gguf"
    source.write_bytes(b"weights")
    target.parent.mkdir()
    left, other = (target.with_name(f".{name}.99999-1.tmp") for name in (target.name, "a.gguf"))
    for path in (left, other):
        path.write_bytes(b"wei")
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    files.place(source, target)
    assert left.exists() and target.read_bytes() == b"weights"
    target.unlink()
    monkeypatch.setattr(files, "_LEFT_AFTER_S", -1.0)
    files.place(source, target)
    assert not left.exists() and other.exists() and target.read_bytes() == b"weights"


def no_links(*paths):
    raise PermissionError
