"""store.py: an artefact is there whole or not at all, whatever happens while it is built."""

import errno
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import pytest

from imatrix_lab.core import digests, files, store
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.manifest import MANIFEST
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact, NotBuilt, Store, fingerprint
from imatrix_lab.errors import DiskFull, ImatrixLabError, ToolFailed

INPUTS = {"language": "nb", "n_tokens": 65_536, "types": ["Q4_K_M", "Q5_K_M"], "text": "blåbær"}
DAY_S = 86_400


class Recorder(Silent):
    """A `Progress` that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


class Builder:
    """Builds two files and counts how often."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, out: Path, scratch: Path) -> Mapping[str, Any]:
        self.n += 1
        (out / "a.txt").write_text("first")
        (out / "sub").mkdir()
        (out / "sub" / "b.bin").write_bytes(bytes(1000))
        return {"n_files": 2, "shape": (1, 2)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def scratch_of(found: Store, kind: str) -> Path:
    """Where an unfinished build keeps what it has so far."""
    return found.root / "work" / f"{kind}-{fingerprint(kind, INPUTS)[:16]}" / "scratch"


def assert_whole(artifact: Artifact) -> None:
    on_disk = {
        p.relative_to(artifact.path).as_posix()
        for p in artifact.path.rglob("*")
        if p.is_file() and p.name != MANIFEST
    }
    assert on_disk == set(artifact.manifest["files"])
    for name in on_disk:
        assert sha256_file(artifact.path / name) == artifact.sha256(name)


def manifest_of(artifact: Artifact) -> bytes:
    return (artifact.path / MANIFEST).read_bytes()


# -- what an artefact is called


def test_fingerprint_stays_what_it_was() -> None:
    """A change here orphans every user's store: raise STORE_VERSION instead, knowingly."""
    assert store.STORE_VERSION == 1
    assert fingerprint("corpus", INPUTS) == (
        "23342bfc5bec32ec359d06bd809b83d1925d0f256683cebe27dc9df80239b6aa"
    )


def test_fingerprint_depends_on_every_input_and_on_no_order() -> None:
    same = dict(reversed(INPUTS.items()))
    assert list(same) != list(INPUTS)
    assert fingerprint("corpus", same) == fingerprint("corpus", INPUTS)
    others = [{**INPUTS, k: None} for k in INPUTS] + [{**INPUTS, "more": 0}, {}]
    found = {fingerprint("corpus", o) for o in [INPUTS, *others]} | {fingerprint("quant", INPUTS)}
    assert len(found) == len(others) + 2


def test_fingerprint_refuses_what_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint("corpus", {"share": float("nan")})


def test_manifest_is_the_same_bytes_in_another_place_and_time(tmp_path: Path) -> None:
    first = Store(tmp_path / "one").get("corpus", "nb", INPUTS, Builder())
    time.sleep(0.02)
    other = Store(tmp_path / "two").get("corpus", "nb", dict(reversed(INPUTS.items())), Builder())
    assert manifest_of(first) == manifest_of(other)
    assert str(tmp_path).encode() not in manifest_of(first)


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store.default_root() == Path(os.environ["IMATRIX_LAB_CACHE"])
    monkeypatch.delenv("IMATRIX_LAB_CACHE")
    assert store.default_root().is_relative_to(tmp_path)  # conftest moved the rest too
    assert store.default_root().name == "imatrix-lab"


# -- building


def test_get_builds_once(root: Path) -> None:
    build, progress = Builder(), Recorder()
    assert Store(root).find("corpus", INPUTS) is None
    first = Store(root).get("corpus", "nb", INPUTS, build, progress)
    again = Store(root).get("corpus", "nb", INPUTS, build, progress)
    assert build.n == 1
    assert progress.said == []
    assert_whole(again)
    assert first.path == again.path == root / "corpus" / f"nb-{fingerprint('corpus', INPUTS)[:16]}"
    assert again.fingerprint == fingerprint("corpus", INPUTS)
    assert again.facts == {"n_files": 2, "shape": [1, 2]}
    assert again.size_bytes() == 1005
    assert set(again.manifest["files"]) == {"a.txt", "sub/b.bin"}
    assert list((root / "work").iterdir()) == []
    assert [a.path for a in Store(root).artifacts()] == [first.path]


def test_a_read_only_store_builds_nothing(root: Path) -> None:
    reader = Store(root, read_only=True)
    with pytest.raises(NotBuilt):
        reader.get("corpus", "nb", INPUTS, Builder())
    assert not root.exists()
    made = Store(root).get("corpus", "nb", INPUTS, Builder())
    assert reader.get("corpus", "nb", INPUTS, Builder()).path == made.path


def test_what_a_kill_after_the_last_rename_left_is_removed(root: Path) -> None:
    found = Store(root)
    artifact = found.get("corpus", "nb", INPUTS, Builder())
    scratch = scratch_of(found, "corpus")
    scratch.mkdir(parents=True)
    (scratch / "half").write_text("x")
    with filelock.FileLock(root / "locks" / f"{scratch.parent.name}.lock"):  # the run that made it
        assert found.get("corpus", "nb", INPUTS, Builder()).path == artifact.path
        assert scratch.exists()
    assert found.get("corpus", "nb", INPUTS, Builder()).path == artifact.path
    assert not scratch.parent.exists()


def test_a_failed_build_leaves_nothing_but_its_scratch(root: Path) -> None:
    def fail(out: Path, scratch: Path) -> Mapping[str, Any]:
        (out / "half.txt").write_text("half")
        (scratch / "windows-0-8").write_text("worth keeping")
        raise ToolFailed("it broke")

    def go_on(out: Path, scratch: Path) -> Mapping[str, Any]:
        assert list(out.iterdir()) == []
        (out / "all.txt").write_text((scratch / "windows-0-8").read_text())
        return {}

    with pytest.raises(ToolFailed):
        Store(root).get("imatrix", "nb", INPUTS, fail)
    assert Store(root).find("imatrix", INPUTS) is None
    assert list(Store(root).artifacts()) == []
    scratch = scratch_of(Store(root), "imatrix")
    assert (scratch / "windows-0-8").read_text() == "worth keeping"
    assert [p for p, _ in Store(root).unfinished()] == [scratch.parent]
    made = Store(root).get("imatrix", "nb", INPUTS, go_on)
    assert (made.path / "all.txt").read_text() == "worth keeping"
    assert set(made.manifest["files"]) == {"all.txt"}
    assert not scratch.exists()


def test_the_lock_is_free_when_a_build_is_over(root: Path) -> None:
    """Also while someone keeps the error, and so the frames of the failed build."""
    store_ = Store(root)
    held: list[BaseException] = []

    def fail(out: Path, scratch: Path) -> Mapping[str, Any]:
        raise ValueError

    try:
        store_.get("corpus", "nb", INPUTS, fail)
    except ValueError as error:
        held.append(error)
    name = f"corpus-{fingerprint('corpus', INPUTS)[:16]}"
    with filelock.FileLock(root / "locks" / f"{name}.lock", timeout=0):
        pass
    lock = store_.lock(name, Silent())
    with lock:
        pass
    with filelock.FileLock(root / "locks" / f"{name}.lock", timeout=0):  # while `lock` lives on
        pass


_BUILDER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from imatrix_lab.core.store import Store

    root, delay_s = Path(sys.argv[1]), float(sys.argv[2])

    def build(out, scratch):
        with (root / "builds").open("a") as file:
            file.write("x")
        for i in range(5):
            with (out / f"part-{i}.bin").open("wb") as file:
                file.write(bytes([i]) * 50_000)
                file.flush()
                time.sleep(delay_s)
                file.write(bytes([i]) * 50_000)
        (out / "deep").mkdir()
        (out / "deep" / "last.txt").write_text("the end")
        return {"parts": 5}

    found = Store(root).get("model", "toy", {"n": 1}, build)
    print(found.path)
    """
)


def start_builder(root: Path, delay_s: float) -> subprocess.Popen[str]:
    root.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", _BUILDER, str(root), str(delay_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_build_once(root: Path) -> None:
    processes = [start_builder(root, 0.1) for _ in range(2)]
    outputs = [p.communicate(timeout=60) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert (root / "builds").read_text() == "x"
    found = Store(root).find("model", {"n": 1})
    assert found is not None
    assert_whole(found)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    root, began = tmp_path / "killed", time.monotonic()
    undisturbed = start_builder(tmp_path / "undisturbed", 0.02)
    _, words = undisturbed.communicate(timeout=60)
    assert undisturbed.returncode == 0, words
    lifetime_s = time.monotonic() - began
    clean = Store(tmp_path / "undisturbed").find("model", {"n": 1})
    assert clean is not None
    moments = random.Random(20).sample(range(1000), 20)
    n_begun = 0
    for moment in moments:
        with start_builder(root, 0.02) as process:
            time.sleep(lifetime_s * moment / 1000)
            process.kill()
        n_begun += (root / "work").exists()
        if found := Store(root).find("model", {"n": 1}):
            assert_whole(found)
            (found.path / MANIFEST).unlink()  # begin again
    assert n_begun > 3, "no kill hit a build: the test proved nothing"
    last = start_builder(root, 0)
    _, words = last.communicate(timeout=60)
    assert last.returncode == 0, words
    found = Store(root).find("model", {"n": 1})
    assert found is not None
    assert_whole(found)
    assert manifest_of(found) == manifest_of(clean)
    assert list((root / "work").iterdir()) == []


def test_what_a_run_was_killed_discarding_is_removed_by_the_next(root: Path) -> None:
    name = f"corpus-{fingerprint('corpus', INPUTS)[:16]}"
    (root / "work" / f"{name}.cb14e1b60b63" / "sub").mkdir(parents=True)
    (root / "work" / "corpus-0123456789abcdef").mkdir()  # another's
    Store(root).get("corpus", "nb", INPUTS, Builder())
    assert [path.name for path in (root / "work").iterdir()] == ["corpus-0123456789abcdef"]


# -- damage


def _truncate(path: Path) -> None:
    os.truncate(path / "sub" / "b.bin", 999)


def _remove(path: Path) -> None:
    (path / "a.txt").unlink()


def _cut_manifest(path: Path) -> None:
    os.truncate(path / MANIFEST, 100)


def _empty_manifest(path: Path) -> None:
    (path / MANIFEST).write_text("")


def _other_manifest(path: Path) -> None:
    (path / MANIFEST).write_text('{"files": {}}')


def _list_manifest(path: Path) -> None:
    (path / MANIFEST).write_text("[1]")


def _binary_manifest(path: Path) -> None:
    (path / MANIFEST).write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    "damage",
    [_truncate, _remove, _cut_manifest, _empty_manifest, _other_manifest, _list_manifest,
     _binary_manifest],
)  # fmt: skip
def test_a_damaged_artefact_is_rebuilt(damage: Any, root: Path) -> None:
    build = Builder()
    before = Store(root).get("corpus", "nb", INPUTS, build)
    manifest = manifest_of(before)
    damage(before.path)
    assert Store(root).find("corpus", INPUTS) is None
    assert list(Store(root).artifacts()) == []
    after = Store(root).get("corpus", "nb", INPUTS, build)
    assert build.n == 2
    assert_whole(after)
    assert manifest_of(after) == manifest
    assert after.path == before.path


def test_a_damaged_artefact_does_not_harm_others(root: Path) -> None:
    damaged = Store(root).get("corpus", "nb", INPUTS, Builder())
    _other_manifest(damaged.path)
    progress = Recorder()
    made = Store(root).get("corpus", "en", {**INPUTS, "language": "en"}, Builder(), progress)
    assert_whole(made)
    assert progress.said == []


# -- why something runs again


def test_it_says_why_it_runs_again(root: Path) -> None:
    progress = Recorder()
    inputs = {"model_sha256": "a", "corpus_sha256": "b", "n_ctx": 512, "flags": ("x", "y")}
    for changed in (
        {},
        {"corpus_sha256": "c"},
        {"corpus_sha256": "c", "n_ctx": 256},
        {"model_sha256": "d", "n_ctx": 128},
    ):
        Store(root).get("imatrix", "nb", {**inputs, **changed}, Builder(), progress)
    assert progress.said == [
        "re-running imatrix nb: changed: corpus_sha256",
        "re-running imatrix nb: changed: n_ctx",
        "re-running imatrix nb: changed: model_sha256, n_ctx",
    ]
    Store(root).get("quant", "nb", {**inputs, "n_ctx": 64}, Builder(), progress)
    Store(root).get("imatrix", "ml", {**inputs, "n_ctx": 64}, Builder(), progress)
    Store(root).get("imatrix", "nb-x", {**inputs, "n_ctx": 32}, Builder(), progress)
    assert len(progress.said) == 3  # nothing of that name was there before


# -- removing


def aged(path: Path, days: float) -> None:
    when = time.time() - days * DAY_S
    os.utime(path, (when, when))


def test_gc_removes_what_is_unused(root: Path) -> None:
    old, used, new = (
        Store(root).get("corpus", str(i), {**INPUTS, "i": i}, Builder()) for i in range(3)
    )
    aged(old.path / MANIFEST, 40)
    aged(used.path / MANIFEST, 40)
    Store(root).get("corpus", "1", {**INPUTS, "i": 1}, Builder())  # used again
    assert Store(root).collect_garbage(30 * DAY_S) == [(old.path, 1005)]
    assert not old.path.exists()
    assert_whole(used)
    assert_whole(new)
    assert {p for p, _ in Store(root).collect_garbage(0)} == {used.path, new.path}
    assert list(Store(root).artifacts()) == []


def test_finding_is_not_using(root: Path) -> None:
    """A plan must not keep things alive."""
    made = Store(root).get("corpus", "nb", INPUTS, Builder())
    aged(made.path / MANIFEST, 40)
    Store(root).find("corpus", INPUTS)
    assert len(Store(root).collect_garbage(30 * DAY_S)) == 1


_HOLDER = textwrap.dedent(
    """
    import sys, filelock
    with filelock.FileLock(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
    """
)


@pytest.fixture
def held(root: Path) -> Iterator[str]:
    """The lock of the corpus of INPUTS, held by another process."""
    name = f"corpus-{fingerprint('corpus', INPUTS)[:16]}"
    (root / "locks").mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(root / "locks" / f"{name}.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield name
    process.communicate(timeout=30)


def test_gc_leaves_what_is_being_built(root: Path, held: str) -> None:
    work, other = root / "work" / held, root / "work" / "corpus-0123456789abcdef"
    for path in (work, other):
        (path / "scratch").mkdir(parents=True)
        (path / "scratch" / "half").write_bytes(bytes(10))
        aged(path, 40)
    removed = Store(root).collect_garbage(30 * DAY_S)
    assert removed == [(other, 10)]
    assert (work / "scratch" / "half").exists()


def test_gc_leaves_an_artefact_whose_lock_is_held(root: Path, held: str) -> None:
    elsewhere = Store(root.with_name("other")).get("corpus", "nb", INPUTS, Builder())
    path = root / "corpus" / elsewhere.path.name
    path.parent.mkdir()
    elsewhere.path.rename(path)
    aged(path / MANIFEST, 40)
    assert Store(root).collect_garbage(0) == []
    found = Store(root).find("corpus", INPUTS)
    assert found is not None
    assert_whole(found)


def test_gc_removes_nothing_behind_a_link(root: Path, tmp_path: Path) -> None:
    """A kind, an artefact and a build that are links into another store."""
    other = Store(tmp_path / "other")
    theirs = [other.get(kind, "nb", INPUTS, Builder()) for kind in ("toolchain", "model")]
    (other.root / "work" / "corpus-0123456789abcdef").mkdir(parents=True)
    (root / "model").mkdir(parents=True)
    (root / "work").mkdir()
    (root / "toolchain").symlink_to(other.root / "toolchain")
    (root / "model" / theirs[1].path.name).symlink_to(theirs[1].path)
    (root / "work" / "corpus-0123456789abcdef").symlink_to(
        other.root / "work" / "corpus-0123456789abcdef"
    )
    assert len(list(Store(root).artifacts())) == 2  # they can be used
    assert Store(root).collect_garbage(0) == []
    for artifact in theirs:
        assert_whole(artifact)
        assert (artifact.path / MANIFEST).exists()
    assert len(list(other.unfinished())) == 1


def test_gc_in_a_store_that_is_itself_a_link(root: Path, tmp_path: Path) -> None:
    """A cache moved to a larger disk is collected as any other."""
    made = Store(root).get("corpus", "nb", INPUTS, Builder())
    (tmp_path / "link").symlink_to(root)
    assert len(Store(tmp_path / "link").collect_garbage(0)) == 1
    assert not made.path.exists()


def test_gc_leaves_a_folder_of_someone_elses(root: Path) -> None:
    """IMATRIX_LAB_CACHE may name a folder that was in use before."""
    thesis = root / "work" / "thesis"
    thesis.mkdir(parents=True)
    (thesis / "chapter.txt").write_text("mine")
    assert Store(root).collect_garbage(0) == []
    assert (thesis / "chapter.txt").read_text() == "mine"


def test_sizes_of_a_build_that_goes_on(root: Path) -> None:
    """A dangling link stands for a file that went while the folder was read."""
    work = root / "work" / "corpus-0123456789abcdef"
    work.mkdir(parents=True)
    (work / "gone").symlink_to(root / "nowhere")
    (work / "there").write_bytes(bytes(7))
    assert list(Store(root).unfinished()) == [(work, 7)]


# -- text files


def test_write_whole(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    files.write_whole(path, "én\n")
    files.write_whole(path, "to\nlinjer\n")
    assert path.read_bytes() == b"to\nlinjer\n"
    assert {p.name for p in tmp_path.iterdir()} == {"manifest.json", "user"}  # conftest's


def test_write_whole_where_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(ImatrixLabError, match="there is no folder") as caught:
        files.write_whole(tmp_path / "absent" / "file", "x")
    assert caught.value.fix and f"mkdir -p {tmp_path / 'absent'}" in caught.value.fix
    (tmp_path / "file").write_text("")
    with pytest.raises(ImatrixLabError, match="there is no folder"):
        files.write_whole(tmp_path / "file" / "file", "x")
    with pytest.raises(ImatrixLabError, match="this is a folder"):
        files.write_whole(tmp_path, "x")


# -- a full disk


def big(out: Path, scratch: Path) -> Mapping[str, Any]:
    (scratch / "kept").write_text("kept")
    with (out / "big.bin").open("wb") as file:
        for _ in range(10):
            file.write(bytes(1 << 20))
    return {}


def test_full_disk_in_a_build(small_disk: Path) -> None:
    found = Store(small_disk / "store")
    earlier = found.get("corpus", "nb", INPUTS, Builder())
    with pytest.raises(DiskFull) as caught:
        found.get("model", "big", INPUTS, big)
    text = str(caught.value)
    assert "imatrix-lab store gc" in text
    assert "IMATRIX_LAB_CACHE" in text
    assert str(small_disk) in text
    assert found.find("model", INPUTS) is None
    again = found.find("corpus", INPUTS)
    assert again is not None
    assert manifest_of(again) == manifest_of(earlier)
    assert_whole(again)
    assert (scratch_of(found, "model") / "kept").exists()
    removed = found.collect_garbage(0)
    assert {p.name.split("-")[0] for p, _ in removed} == {"model", "nb"}
    found.get("corpus", "nb", INPUTS, Builder())


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    break


def test_full_disk_in_write_whole(small_disk: Path) -> None:
    path = small_disk / "manifest.json"
    files.write_whole(path, "old\n")
    fill(small_disk)
    with pytest.raises(DiskFull, match="store gc"):
        files.write_whole(path, "new\n" * 10_000)
    assert path.read_text() == "old\n"
    assert {p.name for p in small_disk.iterdir()} == {"filler", "manifest.json"}


def test_place_within_a_file_system_is_a_hard_link(tmp_path: Path) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "out" / "target.gguf"
    source.write_bytes(b"model")
    files.place(source, target)
    files.place(source, target)
    assert target.samefile(source)
    assert [p.name for p in target.parent.iterdir()] == ["target.gguf"]


def test_place_replaces_what_is_another_file(tmp_path: Path) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    files.place(source, target)
    assert target.read_bytes() == b"new"


def test_place_on_another_disk_is_a_copy(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "need_room", lambda *_: None)  # its margin is more than the disk
    source, target = tmp_path / "source.gguf", small_disk / "out" / "target.gguf"
    source.write_bytes(b"m" * 100_000)
    files.place(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_dev != source.stat().st_dev
    before = target.stat()
    files.place(source, target)
    assert target.stat().st_ino == before.st_ino  # the same already: not copied again


def test_place_on_a_full_disk(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source.gguf", small_disk / "target.gguf"
    target.write_bytes(b"earlier")
    with source.open("wb") as file:
        file.truncate(6 << 20)
    with pytest.raises(DiskFull, match=r"6\.00 MiB"):
        files.place(source, target)  # told before it is tried
    monkeypatch.setattr(files, "need_room", lambda *_: None)
    with pytest.raises(DiskFull, match="finished files are intact"):
        files.place(source, target)
    assert target.read_bytes() == b"earlier"
    assert [p.name for p in small_disk.iterdir()] == ["target.gguf"]


def test_need_room(tmp_path: Path) -> None:
    files.need_room(tmp_path / "not" / "there" / "yet", 0, "nothing")
    with pytest.raises(DiskFull, match=r"the lot needs 1,073,741,824\.00 GiB"):
        files.need_room(tmp_path, 1 << 60, "the lot")


def test_other_errors_stay_what_they_are(root: Path) -> None:
    def fail(out: Path, scratch: Path) -> Mapping[str, Any]:
        raise IsADirectoryError(errno.EISDIR, "no")

    with pytest.raises(IsADirectoryError):
        Store(root).get("corpus", "nb", INPUTS, fail)


def test_no_permission_says_what_to_choose_instead(root: Path) -> None:
    def fail(out: Path, scratch: Path) -> Mapping[str, Any]:
        raise PermissionError(errno.EACCES, "no", "/there")

    with pytest.raises(ImatrixLabError) as caught:
        Store(root).get("corpus", "nb", INPUTS, fail)
    assert "/there" in str(caught.value) and "IMATRIX_LAB_CACHE" in str(caught.value)


def test_json_is_canonical() -> None:
    assert files.canonical_json({"b": "å", "a": 1}) == '{\n "a": 1,\n "b": "å"\n}\n'
    assert json.loads(files.canonical_json(INPUTS)) == INPUTS


# -- several at one time


class Together:
    """Builds several artefacts at one time, and remembers which each time."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[list[int]] = []
        self.fail_at = fail_at

    def __call__(self, held: Mapping[int, tuple[Path, Path]]) -> Mapping[int, Mapping[str, Any]]:
        self.calls.append(sorted(held))
        for i, (out, scratch) in held.items():
            (scratch / "kept").write_text(str(i))
            (out / "who.txt").write_text(f"artefact {i}")
            if i == self.fail_at:
                raise RuntimeError("the unexpected")
        return {i: {"i": i} for i in held}


def wanted(n: int) -> list[tuple[str, dict[str, Any]]]:
    """Labels and inputs; the fingerprints' order is not theirs."""
    return [(f"q{i}", {**INPUTS, "i": i}) for i in range(n)]


def assert_are(found: list[Artifact], expected: list[int]) -> None:
    """Each is its own: facts, files and inputs."""
    assert [a.facts["i"] for a in found] == expected
    assert [a.manifest["inputs"]["i"] for a in found] == expected
    for artifact in found:
        assert_whole(artifact)
        assert (artifact.path / "who.txt").read_text() == f"artefact {artifact.facts['i']}"
        assert artifact.path.name.startswith(f"q{artifact.facts['i']}-")


@pytest.mark.parametrize("there", [(), (0,), (3,), (1, 4), (0, 1, 2, 4), (0, 1, 2, 3, 4)])
def test_together_builds_what_is_missing_at_one_time(root: Path, there: tuple[int, ...]) -> None:
    every = wanted(5)
    for i in there:
        Store(root).get_together("score", [every[i]], lambda held, i=i: renamed(held, i))
    build = Together()
    found = Store(root).get_together("score", every, build)
    missing = [i for i in range(5) if i not in there]
    assert build.calls == ([missing] if missing else [])
    assert_are(found, list(range(5)))
    assert list((root / "work").iterdir()) == []
    again = Store(root).get_together("score", every, build)
    assert [a.path for a in again] == [a.path for a in found]
    assert len(build.calls) == bool(missing)


def renamed(held: Mapping[int, tuple[Path, Path]], i: int) -> Mapping[int, Mapping[str, Any]]:
    """Build the only one that is held as number i."""
    ((only, places),) = held.items()
    return {only: Together()({i: places})[i]}


def test_together_is_the_same_as_one_by_one(root: Path) -> None:
    one_by_one = [Store(root).get_together("score", [w], lambda h, i=i: renamed(h, i))[0]
                  for i, w in enumerate(wanted(3))]  # fmt: skip
    other = Store(root.with_name("other")).get_together("score", wanted(3), Together())
    assert [manifest_of(a) for a in one_by_one] == [manifest_of(a) for a in other]
    single = Store(root).get("score", *wanted(3)[1], Builder())
    assert single.path == one_by_one[1].path


@pytest.mark.parametrize("fail_at", range(3))
def test_together_fails_as_one(root: Path, fail_at: int) -> None:
    with pytest.raises(RuntimeError, match="the unexpected"):
        Store(root).get_together("score", wanted(3), Together(fail_at))
    assert list(Store(root).artifacts()) == []
    assert len(list(root.glob("work/score-*/scratch/kept"))) >= 1  # for the next run
    found = Store(root).get_together("score", wanted(3), Together())
    assert_are(found, [0, 1, 2])


def test_together_what_is_damaged_is_built_again(root: Path) -> None:
    first = Store(root).get_together("score", wanted(3), Together())
    (first[1].path / "who.txt").unlink()
    build = Together()
    assert_are(Store(root).get_together("score", wanted(3), build), [0, 1, 2])
    assert build.calls == [[1]]


def test_together_builds_some_at_a_time(root: Path) -> None:
    """What is there counts for none, and hundreds are no deeper than a few."""
    every = wanted(400)
    for i in (3, 390):
        Store(root).get_together("score", [every[i]], lambda held, i=i: renamed(held, i))
    build = Together()
    found = Store(root).get_together("score", every, build, at_once=7)
    assert [len(call) for call in build.calls] == [7] * 56 + [6]
    assert sorted(i for call in build.calls for i in call) == [
        i for i in range(400) if i not in (3, 390)
    ]
    assert_are(found, list(range(400)))
    assert Store(root).get_together("score", every, build) == found


def test_together_nothing_is_nothing(root: Path) -> None:
    build = Together()
    assert Store(root).get_together("score", [], build) == []
    assert build.calls == []


def test_together_in_a_store_that_only_looks(root: Path) -> None:
    made = Store(root).get_together("score", wanted(2), Together())
    look = Store(root, read_only=True)
    assert [a.path for a in look.get_together("score", wanted(2), Together())] == [
        a.path for a in made
    ]
    with pytest.raises(NotBuilt):
        look.get_together("score", wanted(3), Together())


def test_together_of_two_processes_in_opposite_order(root: Path) -> None:
    """Neither waits for what the other holds while holding what the other waits for."""
    code = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from imatrix_lab.core.store import Store

        def build(held):
            with (root / "builds").open("a") as file:
                file.write("x")
            time.sleep(0.3)
            for i, (out, _) in held.items():
                (out / "who.txt").write_text(str(order[i]))
            return {i: {"i": order[i]} for i in held}

        root, order = Path(sys.argv[1]), [int(x) for x in sys.argv[2:]]
        root.mkdir(exist_ok=True)
        wanted = [(f"q{i}", {"i": i}) for i in order]
        print([a.facts["i"] for a in Store(root).get_together("score", wanted, build)])
        """
    )
    orders = [["0", "1", "2", "3"], ["3", "2", "1", "0"]]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(root), *order], stdout=subprocess.PIPE, text=True
        )
        for order in orders
    ]
    outputs = [p.communicate(timeout=60)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert outputs == ["[0, 1, 2, 3]\n", "[3, 2, 1, 0]\n"]
    assert (root / "builds").read_text() == "x"


# -- files that say of themselves whether they are as they were written


@pytest.mark.parametrize("damage", ["fact", "input", "nested", "list", "key", "digest"])
def test_a_manifest_that_was_changed_is_none(root: Path, damage: str) -> None:
    build = Builder()
    manifest = Store(root).get("thing", "label", INPUTS, build).path / MANIFEST
    table = json.loads(manifest.read_bytes())
    if damage == "fact":
        table["facts"]["n_files"] = 3
    elif damage == "input":
        table["inputs"]["language"] = "nn"
    elif damage == "digest":
        table["facts"]["n_files"], table["dijest"] = 3, table.pop(files.DIGEST)
    elif damage == "key":
        table["fact"] = table.pop("facts")
    text = {"nested": "[" * 100_000, "list": "[1]"}.get(damage, json.dumps(table))
    manifest.write_text(text)
    assert Store(root).find("thing", INPUTS) is None
    assert Store(root).like("thing", {}) is None
    assert Store(root).get("thing", "label", INPUTS, build).facts["n_files"] == 2


def test_manifests_of_earlier_versions_have_no_digest(root: Path) -> None:
    manifest = Store(root).get("thing", "label", INPUTS, Builder()).path / MANIFEST
    table = json.loads(manifest.read_bytes())
    del table[files.DIGEST]
    manifest.write_text(json.dumps(table))
    assert Store(root).find("thing", INPUTS)


@pytest.mark.parametrize("text", ["[1]", "7", "[" * 100_000, '{"%s": "short"}', '{"%s": 7}', ""])
def test_digests_that_cannot_be_read_are_computed_again(tmp_path: Path, text: str) -> None:
    file, session = tmp_path / "x", Session(Store(tmp_path / "store"), Silent())
    file.write_bytes(b"abc")
    sha256 = digests.sha256_of(file, session)
    kept = session.store.root / "sha256.json"
    key = next(iter(json.loads(kept.read_text())))
    kept.write_text(text.replace("%s", key))
    assert digests.sha256_of(file, session) == sha256 == sha256_file(file)
