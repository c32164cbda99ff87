"""llama-server, run on this machine's loopback while it is needed."""

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
from imatrix_lab.llamacpp.programs import EVERYWHERE, Placement
from imatrix_lab.llamacpp.toolchain import IN_MEMORY, Toolchain

START_LIMIT_S = 3600.0  # 40 GB from a slow disk; shaders for Mesa on a busy processor
ANSWER_LIMIT_S = 86_400.0  # many long answers at a time take hours on a CPU
_LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")


@contextlib.contextmanager
def serve(
    toolchain: Toolchain,
    model_path: Path,
    parallel: int,
    n_ctx: int,
    *,
    threads: int | None = None,
    placement: Placement = EVERYWHERE,
    log: Path | None = None,
) -> Iterator[Client]:
    """Run llama-server on a model until the block ends, and give a client of it.

    It listens on 127.0.0.1, at a port of the system's choice, with a random key. `parallel` is how
    many answers at a time, `n_ctx` the tokens of a prompt and its answer.
    """
    key, program = secrets.token_hex(16), toolchain.program("llama-server")
    placement = Placement(0) if toolchain.backend in IN_MEMORY else placement
    argv = programs.server_argv(program, model_path, parallel, n_ctx, threads, placement)
    with contextlib.ExitStack() as stack:
        if log is None:
            log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "llama-server.log"
        # the key in the environment: arguments can be read by every user of the machine
        running = stack.enter_context(process.background(argv, log=log, env={"LLAMA_API_KEY": key}))
        url = f"http://127.0.0.1:{port_of(running)}"
        client = stack.enter_context(Client(url, "", key, ANSWER_LIMIT_S, parallel=parallel))
        for _ in _until_started(running):
            if client.is_ready():
                break
        yield client


def port_of(running: process.Background) -> int:
    """Return the port that a server listens on, once it says so."""
    for _ in _until_started(running):
        if match := _LISTENING.search(running.tail()):
            return int(match[1])
    raise AssertionError


def _until_started(running: process.Background) -> Iterator[None]:
    """Yield repeatedly while a server may still start; raise `ToolFailed` if it does not."""
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        running.check()
        yield
        time.sleep(0.05)
    what = f"llama-server was not ready within {START_LIMIT_S:g} s"
    raise ToolFailed(what, tail=running.tail(), log=running.log)
