"""lease.py: one builder at a time without flock, and whole artefacts whatever pauses or dies."""

import os
import random
import secrets
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from pathlib import Path

import filelock
import pytest

from imatrix_lab.core import lease
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.lease import Lease
from imatrix_lab.core.manifest import MANIFEST
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.store import Store

QUICK = "from imatrix_lab.core import lease\n"
QUICK += "lease.RENEWED_S, lease.EXPIRES_S, lease.POLL_S = 0.1, 1.0, 0.02\n"
ELSEWHERE = "import uuid; name = str(uuid.uuid4()); lease._machine = lambda: name\n"
"""Each process says that it is on a machine of its own: that it died has to be waited for."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in {"RENEWED_S": 0.1, "EXPIRES_S": 1.0, "POLL_S": 0.02}.items():
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "lock"


def start(code, *words, elsewhere=True):
    text = QUICK + (ELSEWHERE if elsewhere else "") + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, words)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


HOLDER = """
    import sys
    from pathlib import Path
    with lease.Lease(Path(sys.argv[1])).acquire():
        print("held", flush=True)
        sys.stdin.read()
"""


def holder(folder, elsewhere=True):
    process = start(HOLDER, folder, elsewhere=elsewhere)
    assert process.stdout.readline() == "held\n", process.stderr.read()
    return process


def seconds_to_take(folder):
    began, taken = time.monotonic(), Lease(folder)
    with taken.acquire(timeout=20):
        return time.monotonic() - began, taken


def test_one_holder_at_a_time(folder):
    with Lease(folder).acquire(), pytest.raises(filelock.Timeout):
        Lease(folder).acquire(timeout=1.5)  # longer than a lease: it is renewed
    waited, taken = seconds_to_take(folder)
    assert waited < 1 and taken.before == ""
    assert len(list(folder.iterdir())) == 1  # turns before are removed


def test_of_a_process_that_died_here_one_knows_at_once(folder):
    process = holder(folder, elsewhere=False)
    process.kill()
    process.communicate()
    waited, taken = seconds_to_take(folder)
    assert waited < lease.EXPIRES_S and taken.before and taken.is_before_gone


def test_of_one_that_died_elsewhere_the_lease_expires(folder):
    process = holder(folder)
    process.kill()
    process.communicate()
    waited, taken = seconds_to_take(folder)
    assert waited >= lease.EXPIRES_S and taken.before and not taken.is_before_gone


def test_clocks_are_not_read(folder):
    """Whatever the file's times are, a holder that renews it keeps it."""
    process = holder(folder)
    (file,) = folder.iterdir()
    os.utime(file, (0, 0))
    watching = Lease(folder)
    for _ in range(15):
        os.utime(file, (0, 0))
        with pytest.raises(filelock.Timeout):
            watching.acquire(timeout=0.1)
    process.communicate()
    watching.acquire(timeout=20)
    os.utime(file.with_name("2"), (2e9, 2e9))
    with pytest.raises(filelock.Timeout):
        Lease(folder).acquire(timeout=0.1)
    watching.release()


def test_one_that_wakes_up_takes_nothing_from_the_next(folder):
    process = holder(folder)
    process.send_signal(signal.SIGSTOP)
    _, first = seconds_to_take(folder)
    assert first.before and not first.is_before_gone
    mine = Lease(folder)
    with mine.acquire():
        process.send_signal(signal.SIGCONT)
        process.communicate()  # it releases its own turn
        with pytest.raises(filelock.Timeout):
            Lease(folder).acquire(timeout=0.5)


def test_a_late_create_of_a_number_that_was_used_is_taken_back(folder, monkeypatch):
    """It decided on turn 2 when turn 1 had ended; meanwhile turns 2 and 3 came and went."""
    slow = Lease(folder)
    for _ in range(3):
        with Lease(folder).acquire():
            pass
    held = Lease(folder)
    with held.acquire():
        real, stale = lease._highest, iter([1])
        monkeypatch.setattr(lease, "_highest", lambda folder: next(stale, None) or real(folder))
        monkeypatch.setattr(slow, "_is_over", lambda number: True)
        assert not slow._take()
        assert [p.name for p in folder.iterdir()] == ["4"]


def forked(work, *words):
    """Start a process that does this, on a machine of its own, and ends with 0 if it could."""
    pid = os.fork()
    if pid:
        return pid
    try:
        name = secrets.token_hex(8)
        lease._machine = lambda: name
        random.seed(name)
        work(*words)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def count(folder, n):
    for _ in range(n):
        with Lease(folder / "lock").acquire():
            inside = folder / "inside"
            inside.open("x").close()
            value = int((folder / "counter").read_text())
            (folder / "counter").write_text(str(value + 1))
            inside.unlink()


def test_many_processes_count_without_losing_one(tmp_path):
    (tmp_path / "counter").write_text("0")
    pids = [forked(count, tmp_path, 10) for _ in range(6)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 6
    assert (tmp_path / "counter").read_text() == "60"


N_ARTEFACTS, N_PARTS = 24, 4


def build_all(root):
    """Build them in any order, each with bytes of this build's own."""

    def build(out, scratch):
        own = secrets.token_bytes(8)
        with (root / "begun").open("a") as file:
            file.write("x")
        for part in range(N_PARTS):
            with (out / f"part-{part}").open("wb") as file:
                file.write(own * 3000)
                file.flush()
                time.sleep(0.1)
                file.write(own * 3000)
        (scratch / "left").write_bytes(own)
        return {"by": own.hex()}

    for number in random.sample(range(N_ARTEFACTS), N_ARTEFACTS):
        Store(root).get("toy", f"n{number}", {"n": number}, build)


class Reader:
    """Looks at artefacts while they come, and notes what is torn."""

    def __init__(self, root):
        self.root, self.torn, self.seen = root, [], {}

    def look(self):
        for artifact in Store(self.root).artifacts():
            name, by = artifact.path.name, bytes.fromhex(artifact.facts["by"])
            parts = {p.name: p.read_bytes() for p in artifact.path.glob("part-*")}
            if parts != {f"part-{i}": by * 6000 for i in range(N_PARTS)}:
                self.torn.append(name)
            if self.seen.setdefault(name, by) != by:
                self.torn.append(f"{name} was replaced")


def test_pauses_beyond_the_lease_and_kills_leave_whole_artefacts(tmp_path):
    """Eight processes that do not know of each other's deaths, disturbed until they are done."""
    root, rng = tmp_path / "store", random.Random(5)
    Store(root).share()
    reader, n_kills, n_pauses = Reader(root), 0, 0
    pids = [forked(build_all, root) for _ in range(8)]
    ended: dict[int, int] = {}
    paused: dict[int, float] = {}
    until = time.monotonic() + 10
    while time.monotonic() < until:
        time.sleep(0.02)
        reader.look()
        for pid in [pid for pid, wake_s in paused.items() if time.monotonic() > wake_s]:
            os.kill(pid, signal.SIGCONT)
            del paused[pid]
        i = rng.randrange(8)
        if pids[i] in paused or pids[i] in ended:
            continue
        if (done := os.waitpid(pids[i], os.WNOHANG))[0]:
            ended[pids[i]] = done[1]
        elif rng.random() < 0.1:
            os.kill(pids[i], signal.SIGKILL)
            os.waitpid(pids[i], 0)
            pids[i] = forked(build_all, root)
            n_kills += 1
        elif rng.random() < 0.4:
            os.kill(pids[i], signal.SIGSTOP)
            paused[pids[i]] = time.monotonic() + rng.choice([0.2, 2.5])
            n_pauses += 1
    for pid in paused:
        os.kill(pid, signal.SIGCONT)
    ended |= {pid: os.waitpid(pid, 0)[1] for pid in pids if pid not in ended}
    reader.look()
    assert [ended[pid] for pid in pids] == [0] * 8
    assert reader.torn == [] and len(reader.seen) == N_ARTEFACTS
    n_begun = len((root / "begun").read_text())
    assert n_kills and n_pauses and n_begun > N_ARTEFACTS, "nothing was disturbed"
    for artifact in Store(root).artifacts():
        for name in artifact.manifest["files"]:
            assert sha256_file(artifact.path / name) == artifact.sha256(name)


# -- the store with leases


@pytest.fixture
def shared(tmp_path):
    store = Store(tmp_path / "store")
    store.share()
    return store


def test_what_a_failed_build_left_is_gone_on_with(shared):
    def fail(out: Path, scratch: Path):
        (scratch / "half").write_text("worth keeping")
        raise ValueError("broken")

    def go_on(out: Path, scratch: Path):
        return {"half": (scratch / "half").read_text()}

    with pytest.raises(ValueError, match="broken"):
        shared.get("toy", "a", {}, fail)
    (left,) = shared.unfinished()
    assert left[0].suffix == ".left"
    assert shared.get("toy", "a", {}, go_on).facts == {"half": "worth keeping"}
    assert list(shared.unfinished()) == []


SLOW = """
    import sys, time
    from pathlib import Path
    from imatrix_lab.core.store import Store

    def build(out, scratch):
        (scratch / "half").write_text("from afar")
        (out / "a").write_text("theirs")
        print("began", flush=True)
        sys.stdin.readline()
        (out / "b").write_text("theirs")
        return {"by": "theirs"}

    print(Store(Path(sys.argv[1])).get("toy", "a", {}, build).facts["by"])
"""


def paused_builder(shared):
    process = start(SLOW, shared.root)
    assert process.stdout.readline() == "began\n", process.stderr.read()
    process.send_signal(signal.SIGSTOP)
    return process


def test_a_paused_builder_wakes_up_to_the_artefact_of_another(shared):
    process = paused_builder(shared)

    def build(out: Path, scratch: Path):
        (out / "a").write_text("ours")
        return {"by": "ours", "half": (scratch / "half").read_text()}

    made = shared.get("toy", "a", {}, build, Silent())
    assert made.facts == {"by": "ours", "half": "from afar"}
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate("\n", timeout=20)
    assert out == "ours\n", err
    assert {p.name for p in made.path.iterdir()} == {"a", MANIFEST}
    assert list(shared.unfinished()) == []


def test_gc_leaves_what_a_paused_machine_may_be_building(shared):
    process = paused_builder(shared)
    assert shared.collect_garbage(0) == []
    process.send_signal(signal.SIGCONT)
    assert process.communicate("\n", timeout=20)[0] == "theirs\n"
    assert len(shared.collect_garbage(0)) == 1


def test_a_store_on_a_network_disk_is_shared_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "is_on_network", lambda folder: True)
    with Store(tmp_path).lock("x", Silent()):
        assert (tmp_path / "locks" / "x" / "1").exists()
    monkeypatch.undo()  # from the machine on which the disk is
    with Store(tmp_path).lock("x", Silent()):
        assert (tmp_path / "locks" / "x" / "2").exists()
    assert not lease.is_on_network(tmp_path / "not" / "there")
