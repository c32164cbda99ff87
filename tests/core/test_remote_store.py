"""remote_store.py behind store.py: what is not here comes from there, whole and verified.

The place is a folder, by fsspec's file://; `failing` stands for one that does not answer.
"""

import json
import pickle
import traceback
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from imatrix_lab.core import remote_store
from imatrix_lab.core.manifest import MANIFEST
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.remote_store import REMOTE, RemoteFailed, RemoteStore
from imatrix_lab.core.store import NotBuilt, Store, fingerprint
from imatrix_lab.errors import ImatrixLabError, MissingTool, UsageError

INPUTS = {"language": "nb", "n_tokens": 65_536}
SECRET = "hunter2"


class Recorder(Silent):
    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


class Builder:
    """Builds two files and counts how often."""

    def __init__(self):
        self.n = 0

    def __call__(self, out, scratch):
        self.n += 1
        (out / "a.txt").write_text("first")
        (out / "sub").mkdir()
        (out / "sub" / "b.bin").write_bytes(bytes(1000))
        return {"n_files": 2}


class Failing(LocalFileSystem):
    """A place that denies or loses what is asked of it while `how` is set."""

    protocol = "failing"
    how: Exception | None = None
    only_writes = False

    def _check(self, mode):
        if self.how and ("w" in mode or not self.only_writes):
            raise self.how

    def open(self, path, mode="rb", **rest):
        self._check(mode)
        return super().open(path, mode, **rest)

    def makedirs(self, path, exist_ok=False):
        self._check("w")
        super().makedirs(path, exist_ok)

    def info(self, path, **rest):
        self._check("r")
        return super().info(path, **rest)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder that is the remote store."""
    monkeypatch.setenv(REMOTE, f"file://{tmp_path}/remote")
    return tmp_path / "remote"


@pytest.fixture
def failing(tmp_path, monkeypatch):
    fsspec.register_implementation("failing", Failing, clobber=True)
    monkeypatch.setenv(REMOTE, f"failing://{SECRET}:{SECRET}@{tmp_path}/remote")
    own = staticmethod(lambda path: path.partition("@")[2] or path)
    monkeypatch.setattr(Failing, "_strip_protocol", own)
    monkeypatch.setattr(remote_store, "_FOLDERS", {"failing"})
    monkeypatch.setattr(Failing, "how", None)
    monkeypatch.setattr(Failing, "only_writes", False)
    remote_store._place.cache_clear()
    Failing.clear_instance_cache()
    return Failing


def store(tmp_path, name):
    return Store(tmp_path / name, remote=RemoteStore())


def get(own, builder=None, progress=None):
    return own.get("corpus", "nb", INPUTS, builder or Builder(), progress)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*") if p.is_file()}  # fmt: skip


def blob(place, artifact, name):
    return place / "files" / artifact.sha256(name)


def test_what_one_store_built_comes_to_another(tmp_path, place):
    builder = Builder()
    first = get(store(tmp_path, "one"), builder)
    second = get(store(tmp_path, "two"), builder)
    assert builder.n == 1 and files(first.path) == files(second.path)
    assert first.manifest == second.manifest and second.path.name == first.path.name
    key = fingerprint("corpus", INPUTS)
    assert (place / "corpus" / key[:16] / MANIFEST).read_bytes() == (
        first.path / MANIFEST
    ).read_bytes()
    assert not [*tmp_path.glob("two/work/*")]
    found = store(tmp_path, "three").find("corpus", INPUTS)
    assert found and files(found.path) == files(first.path)
    assert store(tmp_path, "four").find("corpus", {}) is None
    assert not [*tmp_path.glob("four/work/*")]


def test_in_memory_too(tmp_path, monkeypatch):
    monkeypatch.setenv(REMOTE, "memory://somewhere/deep")
    builder = Builder()
    assert files(get(store(tmp_path, "one"), builder).path) == files(
        get(store(tmp_path, "two"), builder).path
    )
    assert builder.n == 1


def test_it_is_behind_the_default_store_alone(tmp_path, place):
    assert Store().remote and not Store(tmp_path).remote
    assert not Store().own.remote and not Store(read_only=True).remote
    get(store(tmp_path, "one"))
    plans = Store(tmp_path / "two", read_only=True)
    assert plans.find("corpus", INPUTS) is None
    with pytest.raises(NotBuilt):
        get(plans)


def test_half_an_upload_is_no_artefact(tmp_path, place):
    one = get(store(tmp_path, "one"))
    (place / "corpus" / one.fingerprint[:16] / MANIFEST).unlink()
    blob(place, one, "a.txt").write_bytes(b"fir")  # the sender was killed
    builder = Builder()
    two = get(store(tmp_path, "two"), builder)
    assert builder.n == 1 and blob(place, two, "a.txt").read_bytes() == b"first"
    get(store(tmp_path, "three"), builder)
    assert builder.n == 1


@pytest.mark.parametrize("how", ["manifest", "bytes", "shorter", "missing", "other", "outside"])
def test_what_is_damaged_there_is_built_here_and_mended_there(tmp_path, place, how):
    one = get(store(tmp_path, "one"))
    manifest = place / "corpus" / one.fingerprint[:16] / MANIFEST
    if how == "manifest":
        manifest.write_bytes(manifest.read_bytes().replace(b"nb", b"nn"))
    elif how == "bytes":
        blob(place, one, "a.txt").write_bytes(b"frist")
    elif how == "shorter":
        blob(place, one, "a.txt").write_bytes(b"firs")
    elif how == "missing":
        blob(place, one, "a.txt").unlink()
    elif how == "other":
        other = store(tmp_path, "one").get("corpus", "nb", {}, Builder())
        manifest.write_bytes((other.path / MANIFEST).read_bytes())
    else:
        raw = json.loads(manifest.read_bytes())
        raw["files"]["../../escaped"] = raw["files"].pop("a.txt")
        del raw["digest"]
        manifest.write_text(json.dumps(raw))
    builder, heard = Builder(), Recorder()
    two = get(store(tmp_path, "two"), builder, heard)
    assert builder.n == 1 and files(two.path) == files(one.path)
    assert ["damaged" in line for line in heard.said] == [True]
    assert not [*tmp_path.rglob("escaped")]
    heard = Recorder()
    get(store(tmp_path, "three"), builder, heard)
    assert builder.n == 1 and heard.said == []


def test_what_is_there_is_not_replaced(tmp_path, place):
    get(store(tmp_path, "one"))
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()}
    own = Store(tmp_path / "two")
    artifact = get(own)
    RemoteStore().send(artifact.path, artifact.manifest, Silent())
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()} == before


def test_a_file_that_changed_here_is_not_sent(tmp_path, place):
    artifact = get(Store(tmp_path / "one"))
    (artifact.path / "a.txt").write_text("frist")
    with pytest.raises(ImatrixLabError, match="not any more"):
        RemoteStore().send(artifact.path, artifact.manifest, Silent())
    assert not [*place.rglob(MANIFEST)] and not blob(place, artifact, "a.txt").exists()


def test_several_that_are_built_together(tmp_path, place):
    def build(folders):
        built.append(len(folders))
        for i, (out, _) in folders.items():
            (out / "x").write_text(str(i))
        return {i: {"i": i} for i in folders}

    built: list[int] = []
    items = [(f"n{i}", {"i": i}) for i in range(3)]
    store(tmp_path, "one").get_together("score", items[:1], build)
    first = store(tmp_path, "two").get_together("score", items, build)
    second = store(tmp_path, "three").get_together("score", items, build)
    assert built == [1, 2]
    assert [files(a.path) for a in first] == [files(a.path) for a in second]


def test_what_is_dropped_is_dropped_there(tmp_path, place):
    own, part = store(tmp_path, "one"), RemoteStore("studies/x")
    get(own)
    work = Store(tmp_path / "work", remote=part)
    get(work)
    other = Store(tmp_path / "other", remote=part)
    key, brought = fingerprint("corpus", INPUTS), get(other)
    assert part.has("corpus", key)
    other.follow_remote()
    assert brought.path.exists()
    work.drop("corpus", INPUTS, Silent())
    assert not part.has("corpus", key) and work.find("corpus", INPUTS) is None
    other.follow_remote()
    assert not brought.path.exists()
    get(store(tmp_path, "two"), lambda out, scratch: pytest.fail("it is still there"))
    part.remove()
    part.remove()
    assert not (place / "studies" / "x").exists()


def notes(heard):
    return [line for line in heard.said if line.startswith("note: ")]


# -- places that do not answer


def test_no_answer_is_said_once_and_work_goes_on(tmp_path, failing, monkeypatch):
    heard, own = Recorder(), store(tmp_path, "one")
    failing.how = ConnectionError(f"failing://{SECRET}:{SECRET}@host")
    for i in range(3):
        own.get("corpus", "nb", {"i": i}, Builder(), heard)
    (line,) = notes(heard)
    assert "does not answer" in line and SECRET not in line
    failing.how = None
    monkeypatch.setattr(remote_store, "RETRY_S", 0.0)
    remote_store._place.cache_clear()
    own.get("corpus", "nb", {"i": 3}, Builder(), heard)
    failing.how = ConnectionError()
    own.get("corpus", "nb", {"i": 4}, Builder(), heard)
    assert len(notes(heard)) == 2  # it was there in between


def test_denied_access_is_an_error_before_the_work(tmp_path, failing):
    failing.how = PermissionError(f"Access denied to {SECRET}")
    builder = Builder()
    with pytest.raises(RemoteFailed, match="denies access") as caught:
        get(store(tmp_path, "one"), builder)
    assert builder.n == 0
    assert SECRET not in str(caught.value) + "".join(traceback.format_exception(caught.value))


def test_one_that_can_only_be_read(tmp_path, failing):
    get(store(tmp_path, "one"))
    failing.how, failing.only_writes = PermissionError("read-only"), True
    heard, own = Recorder(), store(tmp_path, "two")
    get(own, lambda out, scratch: pytest.fail("it is there"))
    for i in range(2):
        own.get("corpus", "nb", {"i": i}, Builder(), heard)
    assert len(notes(heard)) == 1 and "denies access" in notes(heard)[0]


def test_settings_that_lead_nowhere(tmp_path, monkeypatch):
    for url, error, named in (
        ("/a/folder", UsageError, REMOTE),
        ("nosuch://bucket", UsageError, "nosuch://"),
        (f"abfs://{SECRET}@bucket/x", MissingTool, "adlfs"),
    ):
        monkeypatch.setenv(REMOTE, url)
        builder = Builder()
        with pytest.raises(error) as caught:
            get(store(tmp_path, "one"), builder)
        assert named in str(caught.value) and SECRET not in str(caught.value) and not builder.n


def test_no_object_holds_the_address(tmp_path, failing):
    own = store(tmp_path, "one")
    get(own)
    assert SECRET not in repr(own.remote) and SECRET.encode() not in pickle.dumps(own)
    assert not any(SECRET.encode() in text for text in files(Path(tmp_path)).values())
