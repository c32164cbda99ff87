"""What ``--cluster`` says, as a cluster: one that runs, or one started for the run.

tcp://HOST:PORT, tls://HOST:PORT   a Dask scheduler that runs, with workers of `study worker`
FILE.json                          a scheduler in this process; workers find it by that file
ssh:HOST,HOST=PROGRAM              the same, with a worker on each host (imatrix-lab, or PROGRAM)
slurm:FILE.toml                    the same, with workers from sbatch

What is started here ends with this process: workers over SSH because their input closes, others
because they wait only so long for a scheduler.
"""

import contextlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from imatrix_lab.core import config, process
from imatrix_lab.core.process import Background
from imatrix_lab.core.session import Session
from imatrix_lab.errors import MissingTool, UsageError
from imatrix_lab.study.cluster import address
from imatrix_lab.study.cluster.address import Address
from imatrix_lab.study.cluster.client import Cluster
from imatrix_lab.study.folder import Folder

SCHEDULER_FILE = "scheduler.json"  # in a study's folder, while workers of sbatch may need it
PROGRAM = "imatrix-lab"
_KINDS = "give tls://HOST:PORT, FILE.json, ssh:HOST,HOST or slurm:FILE.toml"


@dataclass(frozen=True)
class Slurm:
    """How sbatch starts workers."""

    workers: Annotated[int, "how many, as an array of jobs"]
    sbatch: Annotated[tuple[str, ...], "further options: --gres=gpu:1, --time=24:00:00"] = ()
    setup: Annotated[tuple[str, ...], "lines of shell before it: module load …"] = ()
    program: Annotated[str, "imatrix-lab on the nodes"] = PROGRAM
    worker: Annotated[tuple[str, ...], "options of study worker"] = ()


@contextlib.contextmanager
def opened(spec: str, folder: Folder, session: Session) -> Iterator[Cluster]:
    """Connect to a cluster, or start one; it, and what was started, is let go at the end."""
    kind, _, rest = spec.partition(":")
    with contextlib.ExitStack() as stack:
        over_ssh = list[Background]()
        if kind in address.SCHEMES:
            at = address.parse(spec)
        elif kind == "ssh" and all(host.partition("=")[0] for host in rest.split(",")):
            at = stack.enter_context(_scheduler())
            for host in rest.split(","):
                over_ssh.append(stack.enter_context(_over_ssh(host, at, folder)))
        elif kind == "slurm":
            settings = config.build(Slurm, config.read_toml(Path(rest)), rest)
            at = stack.enter_context(_scheduler())
            file = folder.of(SCHEDULER_FILE)
            stack.enter_context(address.announced(file, at))
            stack.enter_context(_by_slurm(settings, file, folder, session))
        elif Path(spec).suffix == ".json":
            at = stack.enter_context(_scheduler())
            stack.enter_context(address.announced(Path(spec), at))
            command = f"imatrix-lab study worker --scheduler-file {shlex.quote(spec)}"
            session.progress.say(f"workers find this study by: {command}")
        else:
            raise UsageError(f"--cluster {spec}: no such kind of cluster", fix=_KINDS)
        if at.is_open():
            what = f"{at.address} is not encrypted: who reaches it can run programs on its workers"
            session.progress.say(f"note: {what}")
        cluster = Cluster(at, folder, session, over_ssh)
        stack.callback(cluster.close)
        yield cluster


@contextlib.contextmanager
def _scheduler() -> Iterator[Address]:
    """Run a scheduler in this process, on an address that other machines reach, with TLS."""
    distributed = address.dask()
    own = Address("", *address.new_certificate())
    host = distributed.utils.get_ip()
    with contextlib.ExitStack() as stack:
        with process.interrupts_held():  # its threads; not the study
            cluster = stack.enter_context(distributed.LocalCluster(
                n_workers=0, host=host, security=own.security(), silence_logs=50,
                dashboard_address=None, scheduler_kwargs=address.HTTP,
            ))  # fmt: skip
        yield Address(cluster.scheduler_address, own.certificate, own.key)


@contextlib.contextmanager
def _over_ssh(host: str, at: Address, folder: Folder) -> Iterator[Background]:
    """Run a worker on another machine, which gets the certificate through its input."""
    name, _, program = host.partition("=")
    log = folder.of("logs", f"worker.{name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    there = f"{program or PROGRAM} study worker --scheduler-file - --name {shlex.quote(name)}"
    words = ["ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", name, there]
    with process.background(words, log=log, feed=json.dumps(vars(at)) + "\n") as ssh:
        yield ssh


@contextlib.contextmanager
def _by_slurm(settings: Slurm, file: Path, folder: Folder, session: Session) -> Iterator[None]:
    """Submit an array of jobs, each of which is a worker; cancel them at the end."""
    logs = folder.of("logs")
    logs.mkdir(parents=True, exist_ok=True)
    worker = [settings.program, "study", "worker", "--scheduler-file", str(file), *settings.worker]
    script = logs / "worker.sh"
    script.write_text("\n".join(["#!/bin/sh", *settings.setup, f"exec {shlex.join(worker)}", ""]))
    words = ["sbatch", "--parsable", f"--array=1-{settings.workers}", *settings.sbatch]
    words += [f"--output={logs}/worker.%A_%a.log", f"--job-name={folder.path.name}", str(script)]
    try:
        printed = process.run(words, timeout_s=120).tail
    except MissingTool as error:
        raise MissingTool(error.what, fix="run this where sbatch is, on a login node") from error
    job = printed.strip().splitlines()[-1].partition(";")[0]
    session.progress.say(f"slurm: job {job}, {settings.workers} workers; squeue --job={job}")
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            process.run(["scancel", job], timeout_s=60, check=False)
