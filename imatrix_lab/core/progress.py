"""How a stage tells its caller how far it is; the command line draws it."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from typing import Protocol


class Task(Protocol):
    """One long step."""

    def update(self, done: float, note: str = "") -> None:
        """Say how many units are done in all, and optionally what is special now.

        What the first call of a step says with a note was done by an earlier run.
        """


class Progress(Protocol):
    """Where stages report."""

    def say(self, message: str) -> None:
        """Print one line of talk."""

    def task(self, name: str, total: float, unit: str) -> AbstractContextManager[Task]:
        """Open a long step of `total` units (tokens, bytes, tensors)."""


class Rate:
    """Units a second and time left, from what was done since the step began."""

    def __init__(self, total: float):
        self.total, self.began, self.base, self.done = total, time.monotonic(), 0.0, 0.0
        self.fresh = True

    def update(self, done: float, resumed: bool = False) -> None:
        """Take the count so far; a resumed start is not counted as speed."""
        if resumed and self.fresh:
            self.base = done
        self.done, self.fresh = done, False

    def per_s(self) -> float:
        """Return units a second, 0 if unknown yet."""
        elapsed = time.monotonic() - self.began
        return (self.done - self.base) / elapsed if elapsed > 0.5 else 0.0

    def left_s(self) -> float:
        """Return the seconds left, NaN while it is too early to tell."""
        rate = self.per_s()
        if not rate or self.done - self.base < 0.01 * self.total:
            return math.nan
        return max(0.0, (self.total - self.done) / rate)


class _Quiet:
    def update(self, done: float, note: str = "") -> None:
        pass

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class Silent:
    """A `Progress` that reports nowhere."""

    def say(self, message: str) -> None:
        """Drop the message."""

    def task(self, name: str, total: float, unit: str) -> _Quiet:
        """Return a task that reports nowhere."""
        return _Quiet()
