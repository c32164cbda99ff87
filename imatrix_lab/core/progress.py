"""How a stage reports how far it is; the command line draws it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One long step."""

    def update(self, done: float, note: str = "") -> None:
        """Report how many units are done in total, with an optional note.

        A note in the first call means that an earlier run did that much.
        """


class Progress(Protocol):
    """Where stages report."""

    def say(self, message: str) -> None:
        """Print one line."""

    def task(self, name: str, total: float, unit: str) -> AbstractContextManager[Task]:
        """Open a long step of `total` units (tokens, B for bytes, tensors)."""


class Meter:
    """A `Task` that knows its speed and the time left.

    After each update it calls `then` with itself and the note.
    """

    def __init__(
        self, name: str, total: float, unit: str, then: Callable[[Meter, str], None] | None = None
    ):
        self.name, self.total, self.unit = name, total, unit
        self.began, self.base, self.done = time.monotonic(), 0.0, 0.0
        self._fresh, self._then = True, then

    def update(self, done: float, note: str = "") -> None:
        """Take the total so far; what an earlier run did does not count as speed."""
        if note and self._fresh:
            self.base = done
        self.done, self._fresh = done, False
        if self._then:
            self._then(self, note)

    def share(self) -> float:
        """Return which part is done, from 0 to 1."""
        return self.done / self.total if self.total else 1.0

    def elapsed_s(self) -> float:
        """Return the seconds since it began."""
        return time.monotonic() - self.began

    def per_s(self) -> float:
        """Return units a second, 0 while it is too early to tell."""
        elapsed = self.elapsed_s()
        return (self.done - self.base) / elapsed if elapsed > 0.5 else 0.0

    def left_s(self) -> float:
        """Return the seconds left, NaN while it is too early to tell."""
        rate = self.per_s()
        if not rate or self.done - self.base < 0.01 * self.total:
            return math.nan
        return max(0.0, (self.total - self.done) / rate)


class Relay:
    """A `Progress` that passes everything on to another; subclasses override the hooks."""

    def __init__(self, inner: Progress):
        self.inner = inner

    def say(self, message: str) -> None:
        """Pass a line on."""
        self.inner.say(message)

    @contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Meter]:
        """Pass a task on, and measure it."""
        with self.inner.task(self.title(name), total, unit) as task:

            def pass_on(meter: Meter, note: str) -> None:
                task.update(meter.done, note)
                self.updated(meter, note)

            meter = Meter(name, total, unit, pass_on)
            yield meter
        self.finished(meter)

    def title(self, name: str) -> str:
        """Return the name under which a task is passed on."""
        return name

    def updated(self, meter: Meter, note: str) -> None:
        """Hear of a task's update, after it was passed on."""

    def finished(self, meter: Meter) -> None:
        """Hear that a task was finished."""


class Silent:
    """A `Progress` that reports nowhere."""

    def say(self, message: str) -> None:
        """Drop the message."""

    @contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Meter]:
        """Return a task that reports nowhere."""
        yield Meter(name, total, unit)
