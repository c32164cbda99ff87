"""Calls and workers for tests of a cluster, without models: workers import this by its name."""

import os
import signal
import time
from pathlib import Path

from imatrix_lab.core import interrupt
from imatrix_lab.core.progress import Progress, Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadText
from imatrix_lab.study.cluster.there import Machine, Refused, machine
from imatrix_lab.study.cluster.worker import serve

SIGNATURE = {"commit": "0", "backend": "cpu", "compiler": "none", "cpu": "any"}


def work(where: str, name: str, commit: str) -> None:
    """Be a worker; one whose address is a file's path finds the scheduler there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signature = {**SIGNATURE, "commit": commit}
    own = Machine(name, "cpu", signature, cores=1, jobs=1, memory_bytes=1000)
    serve(where if "://" in where else Path(where), own, Session(Store(Path(name)), Silent()))


def name_of(progress: Progress) -> str:
    """Return which worker this is."""
    progress.say("here")
    return machine().name


def wait_for(path: str, progress: Progress) -> str:
    """Note that it runs, wait for a file, and return which worker this is."""
    Path(f"{path}.{machine().name}").touch()
    try:
        while not Path(path).exists():
            interrupt.check()
            time.sleep(0.05)
        return machine().name
    except KeyboardInterrupt:
        Path(f"{path}.stopped").touch()
        raise


def fail(progress: Progress) -> None:
    """Fail as a step does."""
    raise BadText("no such text", where="here", fix="write one")


def fail_on(names: tuple[str, ...], progress: Progress) -> str:
    """Fail on some machines."""
    if machine().name in names:
        fail(progress)
    return machine().name


def refuse_on(name: str, progress: Progress) -> str:
    """Refuse on one machine."""
    if machine().name == name:
        raise Refused("no such model here")
    return machine().name


def crash_on(name: str, progress: Progress) -> str:
    """Die with the whole process, on one machine, once it has told that it began."""
    if machine().name == name:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return machine().name


def bug(progress: Progress) -> float:
    """Fail as nobody expects."""
    return 1 / 0
