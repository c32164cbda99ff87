"""Errors that a user can act on.

Each says what went wrong, where, and how to fix it. Any other exception that escapes is a bug,
and the command line reports it as one (exit code 3).

    ImatrixLabError          exit 1
    ├── UsageError           exit 2   a wrong argument or a wrong key in a file
    ├── MissingTool                   a compiler, program or library is missing
    ├── ToolFailed                    a program ran and failed; carries its log
    ├── FetchFailed                   a download failed or its hash is wrong
    ├── BadModel                      a GGUF that is truncated, hostile or unsuitable
    ├── BadImatrix                    an importance matrix that must not be used
    ├── BadText                       a corpus that is empty, too short or not UTF-8
    ├── BadRecords                    scores that are damaged, or must not be compared
    └── DiskFull                      no room; finished artefacts are intact
"""

from pathlib import Path


class ImatrixLabError(Exception):
    """An expected failure: what happened, in which file, tensor or address, and what fixes it."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | Path | None = None, fix: str | None = None):
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix

    def __str__(self) -> str:
        where = f"\n  in:  {self.where}" if self.where else ""
        fix = f"\n  try: {self.fix}" if self.fix else ""
        return self.what + where + fix


class UsageError(ImatrixLabError):
    """A wrong argument, or a wrong key or value in a file of settings."""

    exit_code = 2


class MissingTool(ImatrixLabError):
    """A compiler, program or library is missing."""


class ToolFailed(ImatrixLabError):
    """A program ran and failed.

    `tail` is the end of its output and `log` the file with all of it; `crashed` says that it
    ended by its own fault, not by a signal from outside.
    """

    def __init__(
        self, what: str, *, tail: str = "", log: Path | None = None, fix: str | None = None,
        crashed: bool = False,
    ):  # fmt: skip
        super().__init__(what, where=None if log is None else f"log {log}", fix=fix)
        self.tail, self.log, self.crashed = tail, log, crashed


class FetchFailed(ImatrixLabError):
    """A download failed, or does not have the expected hash."""


class BadModel(ImatrixLabError):
    """A model file that is truncated, hostile or unsuitable."""


class BadImatrix(ImatrixLabError):
    """An importance matrix that must not reach the quantizer."""


class BadText(ImatrixLabError):
    """Text that is empty, too short for the job, or not UTF-8."""


class BadRecords(ImatrixLabError):
    """Scores that are damaged, unsigned, or whose signatures forbid comparing them."""


class DiskFull(ImatrixLabError):
    """There is not enough room; finished artefacts are intact."""
