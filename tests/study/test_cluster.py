"""Whole studies on several workers, through the command line: places, kills, failures, Ctrl-C.

The workers are processes of this machine, each with a store of its own beside the study's.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from imatrix_lab.core.remote_store import REMOTE
from imatrix_lab.study.cluster import address
from tests.study.scored import EXAM
from tests.study.whole import COMMAND, EXAM_TASK, ITEMS, SMALL, Workers

distributed = pytest.importorskip("distributed", reason="no Dask: pip install -e '.[cluster]'")


ROOT = Path(__file__).parents[2]
BLIND = ROOT / "tests" / "fakes" / "blind"


def programs_with(text):
    """Command lines of processes that have a text in them."""
    lines = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return [line for line in lines.stdout.splitlines() if text in line and "ps -eo" not in line]


@pytest.fixture
def spread(bench, subprocess_env, tools):
    """A function: name, recipe -> a bench and workers for it."""
    every = []

    def make(name, **rest):
        own = bench(name, **rest)

        def env_of(store):
            env = subprocess_env(store, tools) | {"IMATRIX_LAB_DATA": own.env["IMATRIX_LAB_DATA"]}
            return env | workers.more_env

        workers = Workers(own.folder, env_of)
        every.append(workers)
        return own, every[-1]

    yield make
    for workers in every:
        workers.stop()


@contextlib.contextmanager
def gathered(workers, n):
    """A scheduler that workers find, as a function that returns its address once `n` are there.

    A study is cut into parts for as many as it begins with, by luck where it brings the scheduler.
    """
    with (
        distributed.LocalCluster(
            n_workers=0,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=50,
            scheduler_kwargs=address.HTTP,
        ) as cluster,
        address.announced(workers.file, address.parse(cluster.scheduler_address)),
    ):

        def wait():
            cluster.wait_for_workers(n, timeout=120)
            return cluster.scheduler_address

        yield wait


def until_counted(process):
    """Read what a study says until it has named its workers; its steps have parts for so many."""
    for line in process.stderr:
        if "class cpu" in line:
            return


def test_three_workers_make_what_one_machine_makes(calm, spread):
    ours, workers = spread("three")
    workers.start("desk", "laptop", "rented")
    _, err = ours.study("--cluster", workers.file)
    assert ours.same() == calm.same()
    for path in (calm.out / "scores").iterdir():
        assert (ours.out / "scores" / path.name).read_bytes() == path.read_bytes()
    status = json.loads(ours.run("status", ours.out, "--json")[0])
    machines = {s["machine"] for s in status["steps"].values() if "machine" in s}
    assert machines <= {"desk", "laptop", "rented"} and len(machines) > 1
    assert re.search(r"class cpu \w{8}: \w+", err) and not ours.quants()
    for name in ("desk", "laptop", "rented"):  # steps use the study's store
        assert not (ours.folder / f"store-{name}" / "corpus").exists()
    assert not workers.file.exists()  # with its key
    _, err = ours.run("resume", ours.out)  # on this machine: nothing is left to do
    assert ours.same() == calm.same() and "quantize" not in err


def start_apart(ours, workers):
    """Start workers who see nothing of a bench, and return the folder of their remote store."""
    models = ours.folder / "models"
    models.mkdir()
    shutil.copy(ours.folder / "tiny-f16.gguf", models / "tiny-f16.gguf")
    remote = ours.folder / "remote"
    apart = {REMOTE: f"file://{remote}"}
    ours.env |= apart
    unseen = [ours.folder / name for name in ("cache", "study", "tiny-f16.gguf", "short.jsonl")]
    workers.more_env = apart | {
        "PYTHONPATH": f"{BLIND}:{ROOT}", "BLIND": ":".join(map(str, unseen))
    }  # fmt: skip
    workers.start("desk", "laptop", "rented", more=("--models", models))
    return remote


def test_workers_with_nothing_in_common_but_a_remote_store(calm, spread):
    """Each has a store of its own and its own copy of the model, and sees nothing else of ours."""
    ours, workers = spread("apart")
    remote = start_apart(ours, workers)
    _, err = ours.study("--cluster", workers.file)
    assert "no folder in common" in err and ours.same() == calm.same() and not ours.quants()
    for path in (calm.out / "scores").iterdir():
        assert (ours.out / "scores" / path.name).read_bytes() == path.read_bytes()
    status = json.loads(ours.run("status", ours.out, "--json")[0])
    machines = {s["machine"] for s in status["steps"].values() if "machine" in s}
    assert machines <= {"desk", "laptop", "rented"} and len(machines) > 1
    assert_tidy(ours, remote)
    _, err = ours.run("resume", ours.out)  # on this machine: nothing is left to do
    assert ours.same() == calm.same() and "quantize" not in err


def assert_tidy(ours, remote):
    """Nothing of a study's own is left in the stores; what others can use is."""
    for store in ours.folder.glob("store-*"):
        assert not [*store.glob("work/study-*")]
    assert not [*remote.glob("studies/*")] and [*remote.glob("score/*/manifest.json")]
    assert not any((remote / kind).exists() for kind in ("toolchain", "kernel", "fetched"))


def with_exam(ours):
    """Put a task into the folder of a bench."""
    (ours.folder / "exam.toml").write_text(EXAM)
    (ours.folder / "exam.json").write_text(json.dumps(ITEMS))
    return ours


@pytest.fixture(scope="module")
def examined(bench):
    """An undisturbed study with a task."""
    own = with_exam(bench("examined", text=SMALL + EXAM_TASK))
    own.study()
    return own


def test_what_parts_answer_goes_by_the_remote_store(examined, spread):
    """A task's step finds all of it, whichever machines its parts ran on; so do kept quants."""
    ours, workers = spread("answers-apart", text=SMALL + EXAM_TASK, keep="all")
    with gathered(workers, 3) as scheduler:
        remote = start_apart(with_exam(ours), workers)
        _, err = ours.study("--cluster", scheduler())
    theirs = examined.same()
    theirs["recipe"]["keep"] = "all"
    assert "no folder in common" in err and ours.same() == theirs and ours.quants()
    assert_tidy(ours, remote)
    answered = re.findall(r"(\d+) of (\d+) items were answered before", err)
    assert answered.count((str(len(ITEMS)), str(len(ITEMS)))) == 3
    for path in (examined.out / "items").glob("*.parquet"):
        assert (ours.out / "items" / path.name).read_bytes() == path.read_bytes()
    assert not [*(ours.out / "items" / ".unfinished").glob("*")]
    _, err = ours.run("resume", ours.out)
    assert ours.same() == theirs and "quantize" not in err


def test_killed_workers_change_nothing(examined, spread):
    """One of three is killed every two seconds, once they were counted; tasks have parts there."""
    ours, workers = spread("dying", text=SMALL + EXAM_TASK)
    with_exam(ours)
    rng, n_killed = random.Random(3), 0
    with gathered(workers, 3) as scheduler:
        workers.start("a", "b", "c")
        process = ours.start("run", ours.recipe, "--out", ours.out, "--cluster", scheduler())
        until_counted(process)
        while process.poll() is None and n_killed < 6:
            time.sleep(rng.uniform(1.0, 3.0))
            n_killed += workers.kill(rng.choice("abc"), rng)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert n_killed > 2 and ours.same() == examined.same()
    parts = [path.name for path in (ours.out / "steps").glob("*.part-*.json")]
    assert any(".task." in name for name in parts) and any(".score." in name for name in parts)
    for path in (examined.out / "items").glob("*.parquet"):
        assert (ours.out / "items" / path.name).read_bytes() == path.read_bytes()


def test_ctrl_c_stops_the_steps_on_every_worker(spread):
    ours, workers = spread("halted")
    workers.start("a", "b")
    process = ours.start("run", ours.recipe, "--out", ours.out, "--cluster", workers.file)
    for line in process.stderr:
        if line.startswith("quantize"):
            break
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in rest
    left = programs_with(str(ours.out)) + programs_with(str(ours.folder / "cache"))
    assert left == []
    assert workers.alive("a") and workers.alive("b")
    assert ours.run("status", ours.out)[0].startswith("study: stopped")


def test_what_fails_on_one_machine_is_tried_on_another(spread):
    """One worker's llama.cpp goes after it has begun: whatever comes to it fails."""
    ours, workers = spread("lame", text=SMALL)
    workers.start("lame", "sound")
    process = ours.start("run", ours.recipe, "--out", ours.out, "--cluster", workers.file)
    until_counted(process)
    (ours.folder / "store-lame" / "toolchain").unlink()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert not ours.load().missing and "failed on lame" in err
    logs = [p.read_text() for p in (ours.out / "logs").glob("*.lame.log")]
    assert logs and all("MissingTool" in text for text in logs)


def test_over_ssh_workers_end_with_the_study(spread):
    """A stand-in for ssh, which runs the command line on this machine as sshd does."""
    ours, _ = spread("ssh", text=SMALL)
    folder = ours.folder / "bin"
    folder.mkdir()
    (folder / "ssh").write_text('#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift 2; done\n'
                                'shift\nexec sh -c "$*"\n')  # fmt: skip
    (folder / "ssh").chmod(0o755)
    ours.env["PATH"] = f"{folder}:{Path(COMMAND).parent}:{ours.env['PATH']}"
    hosts = [f"{name}-{os.getpid()}" for name in ("one", "two")]  # ours among all programs
    _, err = ours.study("--cluster", f"ssh:{','.join(hosts)}={COMMAND}")
    assert not ours.load().missing and re.search(f"class cpu .*: {', '.join(hosts)}", err)
    assert [line for host in hosts for line in programs_with(host)] == []
    assert "PRIVATE KEY" not in "".join(p.read_text() for p in (ours.out / "logs").iterdir())


SBATCH = """#!/usr/bin/env python3
import os, pathlib, subprocess, sys
array = next(w for w in sys.argv if w.startswith("--array=")).removeprefix("--array=1-")
output = next(w for w in sys.argv if w.startswith("--output=")).removeprefix("--output=")
here = pathlib.Path(__file__).parent
with (here / "jobs").open("a") as jobs:
    for i in range(1, int(array) + 1):
        log = open(output.replace("%A", "7").replace("%a", str(i)), "ab")
        process = subprocess.Popen([sys.argv[-1]] if os.access(sys.argv[-1], os.X_OK) else
            ["sh", sys.argv[-1]], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True, env={**os.environ, "SLURM_ARRAY_TASK_ID": str(i)})
        print(process.pid, file=jobs)
print("7;cluster")
"""
SCANCEL = """#!/usr/bin/env python3
import os, pathlib, signal, sys
assert sys.argv[1:] == ["7"]
for pid in (pathlib.Path(__file__).parent / "jobs").read_text().split():
    try:
        os.killpg(int(pid), signal.SIGTERM)
    except ProcessLookupError:
        pass
"""


def test_by_slurm(spread):
    """Stand-ins for sbatch and scancel, which take the same words."""
    ours, _ = spread("slurm", text=SMALL)
    folder = ours.folder / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "scancel": SCANCEL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    ours.env["PATH"] = f"{folder}:{ours.env['PATH']}"
    settings = ours.folder / "slurm.toml"
    settings.write_text(f'workers = 2\nprogram = "{COMMAND}"\nsbatch = ["--time=1:00:00"]\n')
    _, err = ours.study("--cluster", f"slurm:{settings}")
    assert not ours.load().missing and "job 7, 2 workers" in err
    until = time.monotonic() + 15
    while (left := programs_with(str(ours.out / "scheduler.json"))) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == []
