"""Calls on a real Dask scheduler and workers, without models: where they run, what stops them.

Workers are processes of this machine; `tests.fakes.cluster_calls` has what they run.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("distributed", reason="no Dask: pip install -e '.[cluster]'")

from imatrix_lab.core import interrupt
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.remote_store import REMOTE, RemoteStore
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import ImatrixLabError, ToolFailed, UsageError
from imatrix_lab.study.cluster import address, client, start, there
from imatrix_lab.study.cluster.client import Cluster
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.graph import Turn
from tests.fakes import cluster_calls

ROOT = Path(__file__).parent.parent.parent


class Said(Silent):
    """Remembers what was said."""

    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


def wait_until(is_true, seconds=60.0):
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


class Machines:
    """A cluster whose scheduler is in this process or in one of its own, and its workers."""

    def __init__(self, folder):
        self.folder, self.said = folder, Said()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.stack = contextlib.ExitStack()

    def open(self, spec=None):
        """Connect; by default a scheduler in this process, with TLS, found by a file."""
        self.where = spec or str(self.folder / "scheduler.json")
        session = Session(Store(self.folder / "store"), self.said)
        opened = start.opened(self.where, Folder(self.folder / "study"), session)
        self.cluster = self.stack.enter_context(opened)
        self.cluster._class = there.class_of(cluster_calls.SIGNATURE)
        return self.cluster

    def add(self, *names, commit="0"):
        code = f"from tests.fakes.cluster_calls import work; work({self.where!r}, *{{}})"
        for name in names:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", code.format([name, commit])], cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        wait_until(lambda: {*names} <= self.cluster.workers().keys())

    def inner(self, name):
        """The process in which calls run."""
        children = psutil.Process(self.processes[name].pid).children()
        return next(p for p in children if "spawn_main" in " ".join(p.cmdline()))

    def kill(self, name):
        parent = psutil.Process(self.processes.pop(name).pid)
        for process in (parent, *parent.children(recursive=True)):
            process.kill()
        parent.wait()

    def call(self, name, function, *arguments, progress=None, **resources):
        turn = Turn(1, progress or self.said, {})
        return self.cluster._try(name, resources, function, *arguments, turn=turn)

    def close(self):
        self.stack.close()
        for process in self.processes.values():
            process.send_signal(signal.SIGINT)
        for process in self.processes.values():
            process.wait(timeout=40)


@pytest.fixture
def machines(tmp_path):
    own = Machines(tmp_path)
    yield own
    own.close()


class Later(threading.Thread):
    """A call in a thread, as the study's scheduler makes it."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.call, self.stop, self.reply, self.error = call, threading.Event(), None, None
        self.start()

    def run(self):
        with interrupt.interruptible(self.stop):
            try:
                self.reply = self.call()
            except BaseException as error:
                self.error = error

    def result(self):
        self.join(60)
        assert not self.is_alive() and self.error is None, self.error
        return self.reply


def test_calls_run_on_workers_of_the_class_and_tell_what_they_do(machines, tmp_path):
    machines.open()
    machines.add("one")
    machines.add("other", commit="1")
    for _ in range(3):
        assert machines.call("x", cluster_calls.name_of).result == "one"
    assert machines.said.lines.count("here") >= 2
    reply = machines.call("y", cluster_calls.fail)
    assert reply.machine == "one" and not reply.failure.is_bug
    assert (reply.failure.what, reply.failure.fix) == ("no such text", "write one")
    reply = machines.call("z", cluster_calls.bug)
    assert reply.failure.is_bug and "1 / 0" in reply.failure.traceback
    reply = machines.call("huge", cluster_calls.name_of, memory=1e9)  # than any has
    assert reply.result == "one"


def test_what_is_interrupted_here_stops_there(machines, tmp_path):
    machines.open()
    machines.add("one")
    path = tmp_path / "go"
    later = Later(lambda: machines.call("x", cluster_calls.wait_for, str(path)))
    wait_until(Path(f"{path}.one").exists)
    later.stop.set()
    later.join(30)
    assert isinstance(later.error, KeyboardInterrupt)
    wait_until(Path(f"{path}.stopped").exists, 10)
    assert machines.call("y", cluster_calls.name_of).result == "one"


def test_a_worker_that_is_killed(machines, tmp_path):
    """First the process in which it runs, then the whole worker: it ends on another."""
    machines.open()
    machines.add("one")
    path = tmp_path / "go"
    later = Later(lambda: machines.call("x", cluster_calls.wait_for, str(path)))
    wait_until(Path(f"{path}.one").exists)
    Path(f"{path}.one").unlink()
    machines.inner("one").kill()
    wait_until(Path(f"{path}.one").exists)  # again, in a new process
    machines.add("two")
    machines.kill("one")
    wait_until(Path(f"{path}.two").exists)
    path.touch()
    assert later.result().result == "two"


def test_a_call_for_one_machine_whose_worker_is_killed(machines, tmp_path, monkeypatch):
    """It begins again once a worker of that name is there; without one it is over."""
    machines.open()
    machines.add("one")
    path = tmp_path / "go"

    def ask():
        return machines.cluster._on_each(["one"], cluster_calls.wait_for, str(path))

    later = Later(ask)
    wait_until(Path(f"{path}.one").exists)
    Path(f"{path}.one").unlink()
    machines.inner("one").kill()
    wait_until(Path(f"{path}.one").exists)  # a new process, at another address
    monkeypatch.setattr(client, "BACK_S", 1.0)  # this one does not come back
    machines.kill("one")
    assert later.result() == {} and not machines.cluster._running  # which the end waits for
    machines.add("two", "one")
    path.touch()
    assert ask() == {"one": "one"}


def test_what_kills_every_process_has_failed(machines):
    machines.open()
    machines.add("one")
    reply = machines.call("x", cluster_calls.crash_on, "one")
    assert "died again and again" in reply.failure.what
    assert not machines.cluster._running  # which the end waits for
    assert machines.call("y", cluster_calls.name_of).result == "one"


def test_what_fails_on_one_machine_is_tried_on_another(machines, tmp_path):
    machines.open()
    machines.add("one", "two")
    turn = Turn(1, machines.said, {})

    def somewhere(function, argument):
        return machines.cluster._somewhere("x", {}, function, argument, turn=turn).result

    logs = tmp_path / "study" / "logs"
    for fails, works in (("one", "two"), ("two", "one")):  # Dask may prefer either
        assert {somewhere(cluster_calls.fail_on, (fails,)) for _ in range(3)} == {works}
    assert {p.name for p in logs.iterdir()} <= {"x.one.log", "x.two.log"}
    assert any(re.search("failed on (one|two): no such text", s) for s in machines.said.lines)
    with pytest.raises(ImatrixLabError, match="no such text"):
        somewhere(cluster_calls.fail_on, ("one", "two"))
    assert {p.name for p in logs.iterdir()} == {"x.one.log", "x.two.log"}
    for refuses, works in (("one", "two"), ("two", "one")):
        if not machines.cluster._unfit:
            assert {somewhere(cluster_calls.refuse_on, refuses) for _ in range(3)} == {works}
    assert len(machines.cluster._unfit) == 1
    assert any("BadText" in path.read_text() for path in logs.iterdir())


def test_a_call_goes_where_its_input_is_unless_another_is_idle(machines, tmp_path):
    machines.open()
    machines.add("one", "two", "three")
    turn, here = Turn(1, machines.said, {}), machines.cluster

    def ask(name, function, *arguments):
        return here._try(name, {"compute": 1}, function, *arguments, near=("made",), turn=turn)

    for place in ("one", "two", "three"):
        here._mark("made", place)
        assert [ask("x", cluster_calls.name_of).machine for _ in range(4)] == [place] * 4
    path = tmp_path / "go"
    several = [Later(lambda i=i: ask(f"y{i}", cluster_calls.wait_for, str(path))) for i in range(3)]
    for place in ("one", "two", "three"):  # all at work, though it is at "three"
        wait_until(Path(f"{path}.{place}").exists)
    path.touch()
    assert {later.result().machine for later in several} == {"one", "two", "three"}


def test_the_machine_goes_that_has_the_input(machines, tmp_path):
    """What waited for it runs elsewhere, and what runs elsewhere goes on."""
    machines.open()
    machines.add("one", "two")
    turn, here = Turn(1, machines.said, {}), machines.cluster
    here._mark("made", "two")

    def ask(name, go, *near):
        call = (name, {"compute": 1}, cluster_calls.wait_for, str(tmp_path / go))
        return Later(lambda: here._try(*call, near=near, turn=turn))

    first = ask("x", "a", "made")
    wait_until((tmp_path / "a.two").exists)
    second = ask("y", "b", "made")
    wait_until((tmp_path / "b.one").exists)  # idle till then
    third = ask("z", "c", "made")
    time.sleep(0.5)
    machines.kill("two")
    for go in ("b", "a", "c"):
        (tmp_path / go).touch()
    assert {later.result().machine for later in (first, second, third)} == {"one"}
    assert not (tmp_path / "b.stopped").exists()
    assert not any("lost" in line for line in machines.said.lines)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_a_scheduler_that_is_killed_and_started_again(machines, tmp_path):
    port = free_port()

    def scheduler():
        words = ["--port", str(port), "--host", "127.0.0.1", "--no-dashboard"]
        words = [sys.executable, "-m", "distributed.cli.dask_scheduler", *words]
        machines.processes["scheduler"] = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    scheduler()
    machines.open(f"tcp://127.0.0.1:{port}")
    assert not any("not encrypted" in line for line in machines.said.lines)
    machines.add("one")
    path = tmp_path / "go"
    later = Later(lambda: machines.call("x", cluster_calls.wait_for, str(path)))
    wait_until(Path(f"{path}.one").exists)
    machines.kill("scheduler")
    wait_until(Path(f"{path}.stopped").exists)
    Path(f"{path}.one").unlink()
    scheduler()
    wait_until(Path(f"{path}.one").exists)
    path.touch()
    assert later.result().result == "one"


def test_who_has_no_certificate_is_refused(machines):
    import distributed

    machines.open()
    file = Path(machines.where)
    assert file.stat().st_mode & 0o777 == 0o600
    at = json.loads(file.read_text())
    assert at["address"].startswith("tls://")
    listening = [c.laddr for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"]
    ports = {str(at.port) for at in listening if at.ip != "127.0.0.1"}
    assert ports <= {at["address"].rpartition(":")[2]}  # and no page that anyone can read
    for security in (None, distributed.Security.temporary()):
        with pytest.raises((OSError, TypeError)):
            distributed.Client(at["address"], security=security, timeout=3, set_as_default=False)
    machines.stack.close()
    assert not file.exists()


def test_folders_that_a_machine_does_not_see(machines, tmp_path):
    machines.open()
    machines.add("one")
    (tmp_path / "seen").write_text("a")
    for path, text, sees in (("seen", "a", True), ("seen", "b", False), ("absent", "a", False)):
        reply = machines.call("x", there.sees, {str(tmp_path / path): text})
        assert reply.result is sees


def test_machines_with_nothing_in_common(machines, tmp_path, monkeypatch):
    """No folder and no remote store; then a remote store that one of them does not have."""
    machines.open()
    machines.add("one")
    for name in ("store", "study"):
        (tmp_path / name).mkdir()
    cluster = machines.cluster
    assert cluster._part("studies/x") == ""
    monkeypatch.setattr(client, "_nonces", lambda *folders: contextlib.nullcontext({"/": ""}))
    with pytest.raises(UsageError, match="not seen") as caught:
        cluster._part("studies/x")
    assert "one" in caught.value.what and REMOTE in caught.value.fix
    monkeypatch.setenv(REMOTE, f"file://{tmp_path}/remote")
    cluster._session = Session(Store(tmp_path / "store", remote=RemoteStore()), machines.said)
    with pytest.raises(UsageError, match=REMOTE):
        cluster._part("studies/x")
    machines.kill("one")
    machines.add("two")  # which has that variable too
    assert cluster._part("studies/x") == "studies/x"


def test_a_machine_that_ssh_does_not_reach_is_an_error_at_once(machines, tmp_path, monkeypatch):
    (tmp_path / "ssh").write_text("#!/bin/sh\necho 'no route to host' >&2\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    machines.open("ssh:nowhere")
    with pytest.raises(ToolFailed, match=r"ssh ended .*no route to host"):
        machines.cluster._choose(None)


# -- without Dask


@pytest.mark.parametrize(
    "spec", ["desk", "http://desk:1", "tcp://desk", "tls://:1", "ssh:", "ssh:a,,b", "s.toml"]
)
def test_what_no_cluster_is_called(spec, tmp_path):
    session = Session(Store(tmp_path), Silent())
    with pytest.raises(UsageError), start.opened(spec, Folder(tmp_path), session):
        pass


def test_which_addresses_everybody_can_use():
    assert address.parse("tcp://192.0.2.1:8786").is_open()
    assert not address.parse("tcp://127.0.0.1:8786").is_open()
    assert not address.parse("tls://192.0.2.1:8786").is_open()


def test_the_class_is_the_build_backend_and_processor():
    signature = {"commit": "1", "backend": "cuda", "compiler": "gcc", "cpu": "a"}
    assert there.class_of(signature) == there.class_of(dict(reversed(signature.items())))
    assert there.class_of(signature).startswith("class cuda ")
    others = {there.class_of({**signature, key: "x"}) for key in signature}
    assert len(others | {there.class_of(signature)}) == 5


def test_a_model_is_known_by_its_bytes_wherever_it_lies(tmp_path, tiny, monkeypatch):
    from imatrix_lab.models import resolve

    session = Session(Store(tmp_path / "store"), Silent())
    model = resolve.resolve(str(tiny), session)
    folder = tmp_path / "models"
    folder.mkdir()
    own = there.Machine("one", "cpu", {}, 1, 1, 1, (str(folder),))
    monkeypatch.setenv(there.MACHINE, there.environment(own)[there.MACHINE])
    assert there._model(model, session).path == tiny
    gone = tmp_path / "gone" / tiny.name
    moved = there.dataclasses.replace(model, path=gone, shards=(gone,))
    with pytest.raises(ImatrixLabError, match="does not have the model"):
        there._model(moved, session)
    other = bytearray(tiny.read_bytes())
    other[-1] ^= 1
    (folder / tiny.name).write_bytes(other)
    with pytest.raises(ImatrixLabError, match="does not have the model"):
        there._model(moved, session)
    os.link(tiny, folder / "under-another-name.gguf")
    assert there._model(moved, session).path == folder / "under-another-name.gguf"


def test_a_cluster_of_no_workers_is_waited_for(machines, tmp_path):
    from imatrix_lab.study.recipe import load
    from tests.study.whole import SMALL

    (tmp_path / "recipe.toml").write_text(SMALL.format(keep="all"))
    recipe = load(tmp_path / "recipe.toml")
    cluster: Cluster = machines.open()
    later = Later(lambda: cluster._choose(recipe))
    machines.add("one")
    machines.add("two", commit="1")
    later.result()
    assert cluster._class == there.class_of(cluster_calls.SIGNATURE)
    Folder(tmp_path / "study").path.mkdir(exist_ok=True)
    wanted = there.class_of({**cluster_calls.SIGNATURE, "commit": "1"})
    Folder(tmp_path / "study").write_status({"class": wanted})
    cluster._choose(recipe)
    assert cluster._class == wanted
    assert any("one is left out" in line for line in machines.said.lines)
