"""The only module that starts other processes.

Argument lists only, never a shell. All output goes to a log file, and its end stays in memory.
To end a program: SIGTERM, a grace period, then SIGKILL. Each program gets its own session, so
that Ctrl-C reaches us first, and its output is a pipe, so that SIGPIPE ends it if we are killed.
"""

import codecs
import contextlib
import errno
import multiprocessing
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, TypeVar

from imatrix_lab.core import interrupt
from imatrix_lab.errors import MissingTool, ToolFailed

TAIL_CHARS = 20_000
GRACE_S = 5.0

Item = TypeVar("Item")
Result = TypeVar("Result")

_CANNOT_RUN = {
    errno.ENOENT: "no such program",
    errno.ENOTDIR: "no such program",
    errno.EACCES: "not executable",
    errno.EPERM: "not executable",
    errno.ENOEXEC: "not a program for this machine",
}

_DEATHS = {
    "SIGILL": (
        "an instruction that this processor does not have",
        "imatrix-lab doctor, which tries each program on this processor",
    ),
    "SIGSEGV": ("it crashed", None),
    "SIGABRT": ("it gave up", None),
    "SIGXCPU": ("it took too much processor time", None),
    "SIGKILL": (
        "killed, most often because memory ran out",
        "close other programs, or use a smaller --batch, --ctx or model; then run it again",
    ),
}
"""Signals -> (what they mean, what helps)."""

_CRASHES = {"SIGILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGTRAP", "SIGSYS"}
"""What programs do to themselves; the other signals come from outside."""

_REASON = re.compile(r"(?:error loading model|failed to quantize): (.+)")
"""What llama.cpp prints before lines that only say that it failed."""
_LACKING = re.compile(r"error while loading shared libraries: (\S+): cannot open")
"""What the loader of Linux prints."""
_LOG_PREFIX = re.compile(r"^\d+(?:\.\d+){3} [A-Z](?: |$)")
"""llama.cpp's time and level."""

_KEPT = {
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TMP", "TEMP", "TERM", "TZ", "PYTHONPATH",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "CC", "CXX", "CUDACXX", "CUDAARCHS", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "VULKAN_SDK",
    "SDKROOT", "DEVELOPER_DIR", "MACOSX_DEPLOYMENT_TARGET", "SYSTEMROOT", "APT_CONFIG",
}  # fmt: skip
_KEPT_PREFIXES = ("PIP_", "HF_", "XDG_", "NVIDIA_", "VK_", "OPENBLAS_", "IMATRIX_LAB_")
_SECRETS = {"HF_TOKEN", "IMATRIX_LAB_API_KEY"}
"""What no program needs that is started here: it could end up in a log."""
_READ_BY_LLAMA_CPP = ("GGML_", "LLAMA_", "OMP_", "GOMP_", "KMP_")
_OURS = {"LLAMA_CPP_DIR", "LLAMA_CPP_LIB_PATH"}


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for programs: a UTF-8 locale, and what cannot change a result.

    What a program must know to change a number (threads, types, devices) is in its arguments, and
    so in the fingerprint; ``LLAMA_ARG_*``, ``GGML_*``, ``CXXFLAGS`` and the like are left out.
    """
    env = {
        k: v
        for k, v in os.environ.items()
        if k in _KEPT
        or (k.startswith(_KEPT_PREFIXES) and k not in _SECRETS)
        or k.lower().endswith("_proxy")
    }
    return {**env, "LC_ALL": "C.UTF-8", **(extra or {})}


def restart_in_utf8() -> NoReturn:
    """Start this program again in Python's UTF-8 mode; its streams keep their encoding.

    In ``LC_ALL=C`` with ``PYTHONUTF8=0``, for example, no file can have a name with ø.
    """
    encoding = sys.stdout.encoding if sys.stdout else "ascii"
    args = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execve(sys.executable, args, {**os.environ, "PYTHONIOENCODING": encoding})


def clean_own_environment() -> None:
    """Remove from this process what llama.cpp's libraries would read from its environment."""
    kept = _OURS | _KEPT
    for name in [n for n in os.environ if n.startswith(_READ_BY_LLAMA_CPP) and n not in kept]:
        del os.environ[name]


@dataclass(frozen=True)
class Completed:
    """A program that has ended: its status, the end of its output, and its time."""

    returncode: int
    tail: str
    seconds: float


def run(
    argv: Sequence[str | Path],
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    on_output: Callable[[str], None] | None = None,
    check: bool = True,
) -> Completed:
    """Run a program to its end; standard output and error are one stream, appended to `log`.

    `on_output` is called with each piece of decoded output as it comes, not line by line:
    llama-imatrix prints its windows on one line. Raises `MissingTool` if there is no such program,
    and `ToolFailed` after `timeout_s` or, with `check`, for a non-zero status.
    """
    args, started = [str(a) for a in argv], time.monotonic()
    name = Path(args[0]).name
    until = None if timeout_s is None else started + timeout_s
    process = _started(args, subprocess.PIPE, cwd, env)
    assert process.stdout is not None
    tail = ""
    try:
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(log.open("ab")) if log else None
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for raw in _pieces(process.stdout, until):
                if sink:
                    sink.write(raw)
                    sink.flush()
                if piece := decoder.decode(raw, final=not raw):
                    tail = (tail + piece)[-TAIL_CHARS:]
                    if on_output:
                        on_output(piece)
        returncode = process.wait(None if until is None else max(0.0, until - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        _end(process)
        what = f"{name} did not finish within {timeout_s:g} s"
        raise ToolFailed(what, tail=tail, log=log) from None
    except BaseException:
        _end(process)
        raise
    finally:
        process.stdout.close()  # only now: a program that is ended may still print something
    if check and returncode != 0:
        raise _failed(f"{name} failed", returncode, tail, log)
    return Completed(returncode, tail, time.monotonic() - started)


def _started(
    args: Sequence[str], output: int | IO[bytes], cwd: Path | None, env: Mapping[str, str] | None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:  # fmt: skip
    try:
        return subprocess.Popen(
            args,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=child_environment(env),
            start_new_session=True,
        )
    except OSError as error:
        if (why := _CANNOT_RUN.get(error.errno or 0)) is None:
            raise
        raise MissingTool(f"cannot run {args[0]}: {why}", fix="imatrix-lab doctor") from error


@dataclass(frozen=True)
class Background:
    """A program that runs beside us."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    def tail(self) -> str:
        """Return the end of its output so far."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL_CHARS))
            return file.read().decode("utf-8", "replace")

    def check(self) -> None:
        """Raise `ToolFailed` if it has ended."""
        if (returncode := self.process.poll()) is not None:
            raise _failed(f"{self.name} ended", returncode, self.tail(), self.log)


_GUARD = "import os, sys; sys.stdin.read() or os.killpg(int(sys.argv[1]), 15)"
"""Ends a process group unless it reads something before its input closes."""


@contextlib.contextmanager
def background(
    argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None, feed: str = ""
) -> Iterator[Background]:
    """Run a program beside us until the block is left, however it is left.

    Its output goes to a new file `log`, so no SIGPIPE ends it if we are killed: a guard process
    does, whose input closes when we end. With `feed`, that is the beginning of its input, which
    closes when the block is left.
    """
    args = [str(a) for a in argv]
    with contextlib.ExitStack() as stack:
        with log.open("wb") as sink:
            stdin = subprocess.PIPE if feed else subprocess.DEVNULL
            process = _started(args, sink, None, env, stdin)
        stack.callback(_end, process)
        if process.stdin:
            stack.callback(_end_of_input, process)
            with contextlib.suppress(BrokenPipeError):  # it has ended, and its log says why
                process.stdin.write(feed.encode())
                process.stdin.flush()
        guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD, str(process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        stack.callback(guard.communicate, b"ended")
        yield Background(Path(args[0]).name, log, process)


def _end_of_input(process: subprocess.Popen[bytes]) -> None:
    """Close a program's input, and give it time to end by itself."""
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2 * GRACE_S)


def _pieces(stdout: IO[bytes], until: float | None) -> Iterator[bytes]:
    """Yield output as it comes until the pipe closes, then an empty piece."""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            if until is not None and time.monotonic() > until:
                raise TimeoutError
            interrupt.check()
            if selector.select(timeout=0.5):
                raw = os.read(stdout.fileno(), 65536)
                yield raw
                if not raw:
                    return


def _end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the whole process group, wait for every member of it, send SIGKILL."""
    _signal(process, signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until:
        if process.poll() is not None and not _signal(process, 0):
            return
        time.sleep(0.02)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], signum: int) -> bool:
    """Send a signal (0: none) to a program and its children; return whether any is left."""
    try:
        os.killpg(process.pid, signum)
    except (ProcessLookupError, PermissionError):  # macOS: the latter for zombies
        return False
    return True


def _failed(what: str, returncode: int, tail: str, log: Path | None) -> ToolFailed:
    """Return the error for a program's status: a signal has its own words and remedy."""
    status = f"exit {returncode}" if returncode >= 0 else f"signal {-returncode}"
    with contextlib.suppress(ValueError):
        status = signal.Signals(-returncode).name
    meaning, fix = _DEATHS.get(status, ("", None))
    reason = _error_line(tail, by_signal=returncode < 0)
    if lacking := _LACKING.search(reason):
        driver = "NVIDIA's driver (nvidia-smi is of it)"
        what = driver if lacking[1].startswith("libcuda.") else f"what has {lacking[1]}"
        fix = f"install {what}, or add its folder to LD_LIBRARY_PATH"
    message = f"{what} ({status}{', ' if meaning else ''}{meaning}): {reason}"
    return ToolFailed(message, tail=tail, log=log, fix=fix, crashed=status in _CRASHES)


def _error_line(tail: str, by_signal: bool) -> str:
    """Return llama.cpp's own reason, else the last line like an error, else the last line."""
    stripped = (_LOG_PREFIX.sub("", x.strip()) for x in tail.replace("\r", "\n").splitlines())
    lines = [line for line in stripped if line]
    for line in reversed(lines):
        if match := _REASON.search(line):
            return match[1][:300]
    for line in reversed(lines[-60:]):
        if "error" in line.lower() or "failed" in line.lower():
            return line[:300]
    if not lines:
        return "it printed nothing"
    return f"{'its last line was: ' if by_signal else ''}{lines[-1][:300]}"


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Yield `function` of each item, in order, from several processes (1: this process).

    At most a few items are in flight. Ctrl-C reaches this process alone; workers end with the
    iterator, and when this process dies. They are spawned, not forked, so all is pickled.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            with interrupts_held():  # workers start here, and inherit that
                waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield interrupt.result(waiting.popleft())
        while waiting:
            yield interrupt.result(waiting.popleft())
    except BrokenProcessPool as error:
        fix = "use fewer --workers: each needs about 300 MB of memory"
        raise ToolFailed("a worker process died", fix=fix) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Defer Ctrl-C in the block; threads and processes started in it never get it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """End this worker when its parent does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
