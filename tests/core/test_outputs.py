"""An output never replaces an input, or a file that was not made here for the same thing."""

import os
import subprocess
from pathlib import Path

import pytest

from imatrix_lab.core.outputs import Rules, check_file, check_folder, replaceable, replacing_equal
from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import ImatrixLabError, UsageError


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "Model.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.mark.parametrize(
    "name", ["Model.gguf", "model.GGUF", "hard", "soft", "folder/../Model.gguf"]
)
def test_an_input_is_never_replaced(tmp_path, model, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "hard").hardlink_to(model)
    (tmp_path / "soft").symlink_to(model)
    for rules in (Rules((model,)), Rules((model,), force=True), Rules((tmp_path,), force=True)):
        with pytest.raises(UsageError, match="input"):
            check_file(tmp_path / name, rules, replaceable)


def test_what_stands_there_is_kept_unless_it_is_the_same_thing(tmp_path, model):
    with pytest.raises(UsageError, match="not replaced") as caught:
        check_file(model, Rules())
    assert caught.value.where == str(model) and "--force" in caught.value.fix
    check_file(model, Rules(), lambda path: "")
    check_file(tmp_path / "new.gguf", Rules())


def test_force_says_once_beforehand_what_it_will_replace(model):
    heard = Heard()
    rules = Rules(force=True, progress=heard)
    for _ in range(2):
        check_file(model, rules, lambda path: "the only copy")
    (line,) = heard.lines
    assert str(model) in line and "the only copy" in line
    assert model.read_bytes() == b"weights"


def test_a_file_that_does_not_say_what_it_is_is_replaced_by_equal_bytes_alone(tmp_path):
    path = tmp_path / "new" / "table.csv"
    for text in ("1\n", "1\n"):
        with replacing_equal(path, Rules()) as temporary:
            temporary.write_text(text)
    with pytest.raises(UsageError), replacing_equal(path, Rules()) as temporary:
        temporary.write_text("2\n")
    assert path.read_text() == "1\n" and [*path.parent.iterdir()] == [path]
    with replacing_equal(path, Rules(force=True)) as temporary:
        temporary.write_text("2\n")
    assert path.read_text() == "2\n"


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full"])
def test_a_device_stays_what_it_is(path):
    with pytest.raises(UsageError, match="not a file"):
        check_file(Path(path), Rules(force=True), replaceable)


def test_files_and_folders_in_each_others_places(tmp_path, model):
    with pytest.raises(UsageError, match="folder") as caught:
        check_file(tmp_path, Rules(force=True), replaceable)
    assert str(tmp_path) in caught.value.fix
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "file")
    for out in (model, model / "x", model / "x" / "y", tmp_path / "nowhere"):
        with pytest.raises(UsageError):
            check_folder(out)
        with pytest.raises(UsageError):
            check_file(out, Rules())
    check_folder(tmp_path / "new" / "deep")
    check_file(tmp_path / "new" / "deep" / "file", Rules())
    assert not (tmp_path / "new").exists()


@pytest.fixture
def read_only(tmp_path):
    """A folder that cannot be written to: a disk for root, whom modes do not stop."""
    path = tmp_path / "read-only"
    path.mkdir(mode=0o555)
    mounted = False
    if os.geteuid() == 0:
        argv = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(path)]
        mounted = not subprocess.run(argv, check=False, capture_output=True).returncode
        if not mounted:
            pytest.skip("root here may not mount a disk")
    yield path
    if mounted:
        subprocess.run(["umount", str(path)], check=True)


def test_what_the_disk_does_not_take_is_told_and_leaves_no_trace(read_only):
    for check, out in (
        (check_folder, read_only),
        (check_folder, read_only / "a" / "b"),
        (lambda path: check_file(path, Rules()), read_only / "file"),
        (lambda path: check_file(path, Rules()), read_only / "a" / "file"),
    ):
        with pytest.raises(ImatrixLabError, match="cannot write here") as caught:
            check(out)
        assert caught.value.where == str(read_only)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="no /proc")
def test_a_folder_that_takes_no_files_is_told():
    with pytest.raises(UsageError, match="takes no files"):
        check_file(Path("/proc/a.gguf"), Rules())
