"""How a stage tells its caller how far it is; the command line draws it."""

from __future__ import annotations

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
