"""A worker: this machine's part in studies, until it is stopped."""

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imatrix_lab.core import process
from imatrix_lab.core.format import duration
from imatrix_lab.core.session import Session
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import compute
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.toolchain import cores
from imatrix_lab.study.cluster import address
from imatrix_lab.study.cluster.address import Address
from imatrix_lab.study.cluster.there import Machine, environment

WAIT_S = 600.0
"""How long a worker waits for a scheduler that is not there, or gone."""
RETRY_S, LOOK_S, CONNECT_S = 2.0, 0.5, 30.0
STDIN = Path("-")


def describe(
    name: str, backend: str, jobs: int, models: tuple[Path, ...], session: Session
) -> Machine:
    """Return what this machine is; llama.cpp is built here if necessary."""
    for folder in models:
        if not folder.is_dir():
            raise UsageError("there is no folder of models", where=folder)
    tools = get_toolchain(backend, session)
    return Machine(
        name=name or f"{socket.gethostname()}-{os.getpid()}",
        backend=backend,
        signature=tools.signature(),
        cores=cores(),
        jobs=jobs,
        memory_bytes=int(compute.MEMORY_SHARE * compute.memory_bytes()),
        models=tuple(str(folder.absolute()) for folder in models),
    )


def serve(where: str | Path, own: Machine, session: Session) -> None:
    """Work for the scheduler at an address, or in a file, until stopped or it is gone for long.

    The file may come, and change, later. Of ``-`` one line is read, and its end ends the worker.
    """
    address.dask()
    stop, found = threading.Event(), _finder(where)
    if where == STDIN:
        line = sys.stdin.readline()
        found = lambda: address.read(line, "standard input")  # noqa: E731
        threading.Thread(target=_until_end_of_input, args=(stop,), daemon=True).start()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(found, own, session, stop)))
    with process.interrupts_held():  # it, and the processes that Dask starts
        thread.start()
    try:
        while thread.is_alive():
            thread.join(LOOK_S)
    finally:
        stop.set()
        thread.join()


def _until_end_of_input(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def _finder(where: str | Path) -> Callable[[], Address | None]:
    if not isinstance(where, Path):
        fixed = address.parse(where)
        return lambda: fixed

    def read() -> Address | None:
        with contextlib.suppress(FileNotFoundError):
            return address.read(where.read_text(encoding="utf-8"), where)
        return None

    return read


async def _serve(
    find: Callable[[], Address | None], own: Machine, session: Session, stop: threading.Event
) -> None:
    waiting_since = time.monotonic()
    while not stop.is_set() and time.monotonic() - waiting_since < WAIT_S:
        if (at := find()) and await _answers(at):
            session.progress.say(f"{own.name}: working for {at.address}")
            try:
                await _work(at, own, stop)
                why = "the scheduler is gone"
            except Exception as error:  # of many kinds, Dask's own
                why = str(error.__cause__ or error)
            waiting_since = time.monotonic()
            if not stop.is_set():
                session.progress.say(f"{own.name}: {why}; trying again")
        await asyncio.sleep(0 if stop.is_set() else RETRY_S)
    if not stop.is_set():
        session.progress.say(f"{own.name}: no scheduler for {duration(WAIT_S)}; ending")


async def _answers(at: Address) -> bool:
    connect, arguments = address.dask().core.connect, at.security().get_connection_args("worker")
    try:
        comm = await connect(at.address, timeout=RETRY_S, **arguments)
    except (OSError, TimeoutError):
        return False
    await comm.close()
    return True


async def _work(at: Address, own: Machine, stop: threading.Event) -> None:
    settings: dict[str, Any] = {"memory_limit": None, "silence_logs": 50, **address.HTTP}
    settings |= {"env": environment(own), "resources": own.resources(), "name": own.name}
    is_gpu = own.backend != "cpu"  # then there are cores left for what needs no GPU
    settings |= {"nthreads": own.jobs + is_gpu, "security": at.security()}
    settings["death_timeout"] = CONNECT_S
    async with address.dask().Nanny(at.address, **settings) as nanny:
        while not stop.is_set() and nanny.status.name in ("init", "starting", "running"):
            await asyncio.sleep(LOOK_S)
