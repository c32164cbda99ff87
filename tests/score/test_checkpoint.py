"""Rows of finished batches: each there whole or not at all."""

import numpy as np
import pytest

from imatrix_lab.score.checkpoint import Checkpoint
from imatrix_lab.score.job import row_type

SIZES = [3, 0, 5]


def rows(n, seed=0):
    part = np.zeros(n, row_type())
    part["kld"] = np.random.default_rng(seed).random(n)
    return part


@pytest.fixture
def full(tmp_path):
    checkpoint = Checkpoint(tmp_path, SIZES)
    for i, n in enumerate(SIZES):
        checkpoint.add(i, rows(n, i))
    return checkpoint


def test_what_is_added_is_there_for_the_next(full, tmp_path):
    again = Checkpoint(tmp_path, SIZES)
    assert [again.has(i) for i in range(3)] == [True] * 3
    wanted = np.concatenate([rows(n, i) for i, n in enumerate(SIZES)])
    assert again.all().tobytes() == wanted.tobytes()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("keep", [0, 1, 64, 130, 200])
def test_a_part_of_a_file_is_none(full, tmp_path, keep):
    path = full.path(2)
    path.write_bytes(path.read_bytes()[:keep])
    assert [Checkpoint(tmp_path, SIZES).has(i) for i in range(3)] == [True, True, False]


def test_a_file_of_other_rows_is_none(full, tmp_path):
    assert [Checkpoint(tmp_path, [3, 0, 6]).has(i) for i in range(3)] == [True, True, False]


def test_several_kinds_in_one_folder(full, tmp_path):
    other = Checkpoint(tmp_path, [2, 2, 2], "full")
    assert not any(other.has(i) for i in range(3))
    other.add(0, np.ones((2, 7), np.float32))
    assert Checkpoint(tmp_path, [2, 2, 2], "full").rows(0).shape == (2, 7)
    assert full.rows(0).dtype == row_type()


def test_hand_over_writes_nothing_twice(full, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    full.hand_over(out)
    assert Checkpoint(out, SIZES).all().tobytes() == full.all().tobytes()
    assert all(full.path(i).samefile(out / full.path(i).name) for i in range(3))


def test_hand_over_to_a_disk_without_links(full, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", no_links)
    out = tmp_path / "out"
    out.mkdir()
    full.hand_over(out)
    assert Checkpoint(out, SIZES).all().tobytes() == full.all().tobytes()
