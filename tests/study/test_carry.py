"""carry.py: a result goes to another machine with its files, and comes back with its own paths."""

import contextlib
import shutil
import threading
from pathlib import Path

import pytest

from imatrix_lab.core import interrupt
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.remote_store import REMOTE, RemoteFailed, RemoteStore
from imatrix_lab.core.store import Store
from imatrix_lab.study.cluster import carry
from imatrix_lab.study.cluster.carry import Carrier, StoredFile, StudyFile
from imatrix_lab.study.folder import Folder

QUIET = Silent()


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """A function: name -> the carrier there; ``home`` is where the study was started."""
    monkeypatch.setenv(REMOTE, f"file://{tmp_path}/remote")

    def make(name):
        folder = Folder(tmp_path / name / "study")
        store = Store(tmp_path / name / "store", remote=RemoteStore())
        return Carrier(folder, store, carry.part_of("t"), is_worker=name != "home")

    return make


def build(text):
    def make(out, scratch):
        (out / "sub").mkdir()
        (out / "sub" / "x.txt").write_text(text)
        return {}

    return make


def test_files_of_store_and_folder_go_along(machines, tmp_path):
    a, home, b = machines("a"), machines("home"), machines("b")
    artifact = a.store.get("corpus", "nb", {"i": 1}, build("text"))
    scores = a.folder.of("scores", "x.parquet")
    scores.parent.mkdir(parents=True)
    scores.write_text("records")
    inside = artifact.path / "sub" / "x.txt"
    result = {"files": [str(scores)], "deep": {"text": str(inside), "n": 1, "other": "/etc/x"}}
    sent = a.sent(result, QUIET)
    assert isinstance(sent["files"][0], StudyFile)
    assert sent["deep"]["text"] == StoredFile("corpus", artifact.path.name, "sub/x.txt", False)
    at_home = home.brought(sent, QUIET)
    assert at_home["files"] == [str(home.folder.of("scores", "x.parquet"))]
    assert at_home["deep"]["other"] == "/etc/x" and at_home["deep"]["n"] == 1
    shutil.rmtree(tmp_path / "a")  # that machine is gone
    there = b.brought(home.sent(at_home, QUIET), QUIET)
    assert b.folder.of("scores", "x.parquet").read_text() == "records"
    for path in (at_home["deep"]["text"], there["deep"]["text"]):
        assert Path(path).read_text() == "text"
    assert there["deep"]["text"].startswith(str(b.store.root))


def test_an_artefact_that_another_calls_otherwise(machines):
    a, b = machines("a"), machines("b")
    first = a.store.get("corpus", "nb", {"i": 1}, build("text"))
    second = b.store.get("corpus", "other", {"i": 1}, build("text"))
    sent = a.sent({"x": str(first.path / "sub" / "x.txt")}, QUIET)
    assert b.brought(sent, QUIET) == {"x": str(second.path / "sub" / "x.txt")}


def test_quants_that_are_not_kept_pass_by_home(machines):
    a, home, b = machines("a"), machines("home"), machines("b")
    quant = a.passing.get("quant", "q", {"i": 1}, build("weights"))
    result = {"path": str(quant.path / "sub" / "x.txt")}
    at_home = home.brought(a.sent(result, QUIET), QUIET)
    assert at_home["path"].startswith(str(home.folder.of("work")))
    assert not home.folder.of("work").exists()
    onwards = home.sent(at_home, QUIET)
    assert not home.folder.of("work", "quant").exists()
    path = b.brought(onwards, QUIET)["path"]
    assert Path(path).read_text() == "weights"
    home.passing.drop("quant", {"i": 1}, QUIET)
    b.passing.follow_remote()
    assert quant.path.exists() and not list(b.folder.of("work").rglob("x.txt"))


def test_a_kept_quant_lies_in_the_remote_store_once(machines, tmp_path):
    a = machines("a")
    quant = a.store.get("quant", "q", {"i": 1}, build("weights"))
    placed = a.folder.of("quants", "q.gguf")
    placed.parent.mkdir(parents=True)
    placed.hardlink_to(quant.path / "sub" / "x.txt")
    sent = a.sent({"path": str(placed)}, QUIET)
    assert sent["path"].part == "" and not (tmp_path / "remote" / "studies").exists()
    path = machines("b").brought(sent, QUIET)["path"]
    assert Path(path).read_text() == "weights" and path.endswith("study/quants/q.gguf")


def test_a_file_that_changed_is_brought_again(machines):
    a, b = machines("a"), machines("b")
    file = a.folder.of("x.json")
    file.parent.mkdir(parents=True)
    for text in ("one", "two"):
        file.write_text(text)
        b.brought(a.sent([str(file)], QUIET), QUIET)
        assert b.folder.of("x.json").read_text() == text


def test_what_is_gone_is_an_error_and_can_be_interrupted(machines, tmp_path, monkeypatch):
    a, b = machines("a"), machines("b")
    artifact = a.store.get("corpus", "nb", {"i": 1}, build("text"))
    sent = a.sent([str(artifact.path / "sub" / "x.txt")], QUIET)
    shutil.rmtree(tmp_path / "remote")
    stop = threading.Event()
    stop.set()
    with interrupt.interruptible(stop), pytest.raises(KeyboardInterrupt):
        b.brought(sent, QUIET)
    monkeypatch.setattr(carry, "PATIENCE_S", 0.0)
    with pytest.raises(RemoteFailed, match="cannot be had") as caught:
        b.brought(sent, QUIET)
    assert "resume" in caught.value.fix


def test_a_remote_store_that_is_away_for_a_moment(machines, monkeypatch):
    a, b = machines("a"), machines("b")
    file = a.folder.of("x.json")
    file.parent.mkdir(parents=True)
    file.write_text("text")
    sent = a.sent([str(file)], QUIET)
    monkeypatch.setattr(carry, "AGAIN_S", 0.0)
    fetch, left = RemoteStore.fetch_file, iter([RemoteFailed("away"), RemoteFailed("away")])

    def failing(*arguments):
        with contextlib.suppress(StopIteration):
            raise next(left)
        return fetch(*arguments)

    monkeypatch.setattr(RemoteStore, "fetch_file", failing)
    assert b.brought(sent, QUIET) == [str(b.folder.of("x.json"))]
