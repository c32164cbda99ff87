"""Stopping work in threads: Ctrl-C reaches the main thread alone.

A thread that heeds an event is interrupted as the main thread would be: at its next report of
progress, and wherever it waits for a program, a lock or a native call.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Found = TypeVar("Found")

EVERY_S = 0.2
_asked: ContextVar[threading.Event | None] = ContextVar("asked to stop", default=None)


@contextmanager
def heeding(asked: threading.Event) -> Iterator[None]:
    """Let what this thread does in the block end soon after `asked` is set."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def check() -> None:
    """Raise KeyboardInterrupt if this thread's work is to end."""
    asked = _asked.get()
    if asked is not None and asked.is_set():
        raise KeyboardInterrupt


def result(future: Future[Found]) -> Found:
    """Return a future's result; the wait can be interrupted."""
    if _asked.get() is not None:
        while not wait([future], EVERY_S).done:
            check()
    return future.result()
