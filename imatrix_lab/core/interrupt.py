"""Stopping work in threads, since Ctrl-C reaches only the main thread.

A thread inside `interruptible` is interrupted as the main thread would be: at its next report of
progress, and wherever it waits for a program, a lock or a native call.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

EVERY_S = 0.2
_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


@contextmanager
def interruptible(stop: threading.Event) -> Iterator[None]:
    """Let this thread's work in the block be interrupted by setting `stop`."""
    token = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(token)


def check() -> None:
    """Raise KeyboardInterrupt if this thread is to stop."""
    stop = _stop.get()
    if stop is not None and stop.is_set():
        raise KeyboardInterrupt


def result(future: Future[T]) -> T:
    """Return a future's result; the wait can be interrupted."""
    if _stop.get() is not None:
        while not wait([future], EVERY_S).done:
            check()
    return future.result()
