"""llama-server for as long as it is needed, on this machine's loopback alone."""

import contextlib
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from imatrix_lab.core import process
from imatrix_lab.errors import ToolFailed
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.client import Client
from imatrix_lab.llamacpp.toolchain import Toolchain

START_LIMIT_S = 600.0
ANSWER_LIMIT_S = 86_400.0
"""Our own server is slow rather than gone: many long answers at a time on a CPU take hours."""
_LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")


@contextlib.contextmanager
def serve(
    toolchain: Toolchain,
    model_path: Path,
    parallel: int,
    n_ctx: int,
    *,
    threads: int | None = None,
    gpu_layers: int | None = None,
    log: Path | None = None,
) -> Iterator[Client]:
    """Run llama-server on a model, and give a client of it; it ends with the block.

    It listens on 127.0.0.1, at a port of the system's choice, for a random key.

    Parameters
    ----------
    parallel : answers at a time.
    n_ctx : tokens of a prompt and its answer.
    log : file for what it prints; None keeps it only while it runs.

    Raises
    ------
    ToolFailed : it does not start; with its last words.
    """
    key = secrets.token_hex(16)
    argv = programs.server_argv(
        toolchain.program("llama-server"), model_path, parallel, n_ctx, threads,
        0 if toolchain.backend == "cpu" else gpu_layers,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        if log is None:
            log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "llama-server.log"
        # the key in the environment: arguments can be read by every user of the machine
        running = stack.enter_context(process.background(argv, log=log, env={"LLAMA_API_KEY": key}))
        client = Client(
            f"http://127.0.0.1:{port_of(running)}",
            api_key=key,
            timeout_s=ANSWER_LIMIT_S,
            parallel=parallel,
        )
        stack.enter_context(client)
        for _ in _until_started(running):
            if client.is_ready():
                break
        yield client


def port_of(running: process.Background) -> int:
    """Return the port that a server listens on, once it says so."""
    for _ in _until_started(running):
        if found := _LISTENING.search(running.tail()):
            return int(found[1])
    raise AssertionError


def _until_started(running: process.Background) -> Iterator[None]:
    """Yield every now and then, while a server runs that may yet start.

    Raises
    ------
    ToolFailed : it has ended, or does not start.
    """
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        running.check()
        yield
        time.sleep(0.05)
    raise ToolFailed(
        f"llama-server was not ready within {START_LIMIT_S:g} s",
        argv=running.argv, returncode=None, tail=running.tail(), log=running.log,
    )  # fmt: skip
