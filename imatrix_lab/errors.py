"""Errors that a user can act on.

Each says what went wrong, where, and the command that mends it. Anything else that
escapes is a bug, and the command line reports it as one (exit code 3).

    ImatrixLabError          exit 1
    ├── UsageError           exit 2   an argument that cannot be meant
    ├── MissingTool                   a compiler, program or library is not there
    ├── ToolFailed                    a program ran and failed; carries its log
    ├── FetchFailed                   a download failed or its hash is wrong
    ├── BadModel                      a GGUF that is truncated, hostile or unfit
    ├── BadImatrix                    an importance matrix that must not be used
    ├── BadText                       a corpus that is empty, too short or not UTF-8
    ├── BadRecords                    scores that are damaged, or must not be compared
    └── DiskFull                      no room; earlier artefacts are intact
"""

from collections.abc import Sequence
from pathlib import Path


class ImatrixLabError(Exception):
    """An expected failure.

    Parameters
    ----------
    what : the failure in one sentence.
    where : the file, tensor or address it concerns.
    fix : the command or action that mends it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | Path | None = None, fix: str | None = None):
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  in:  {self.where}")
        if self.fix:
            parts.append(f"  try: {self.fix}")
        return "\n".join(parts)


class UsageError(ImatrixLabError):
    """An argument that cannot be meant."""

    exit_code = 2


class MissingTool(ImatrixLabError):
    """A compiler, program or library is not there."""


class ToolFailed(ImatrixLabError):
    """A program ran and failed.

    Parameters
    ----------
    argv : what was run.
    returncode : its exit status; negative for a signal, None for a time-out.
    tail : the last of its output.
    log : the file with all of its output.
    """

    def __init__(
        self,
        what: str,
        *,
        argv: Sequence[str],
        returncode: int | None,
        tail: str,
        log: Path | None,
        fix: str | None = None,
    ):
        super().__init__(what, where=None if log is None else f"log {log}", fix=fix)
        self.argv = list(argv)
        self.returncode = returncode
        self.tail = tail
        self.log = log

    @property
    def is_crash(self) -> bool:
        """Whether a signal ended the program, other than one that asks it to stop."""
        return (
            self.returncode is not None and self.returncode < 0 and self.returncode not in (-2, -15)
        )


class FetchFailed(ImatrixLabError):
    """A download failed, or what arrived is not what was pinned."""


class BadModel(ImatrixLabError):
    """A model file that is truncated, hostile or unfit for the purpose."""


class BadImatrix(ImatrixLabError):
    """An importance matrix that must not reach the quantizer."""


class BadText(ImatrixLabError):
    """Text that is empty, too short for the job, or not UTF-8."""


class BadRecords(ImatrixLabError):
    """Scores that are damaged, unsigned, or whose signatures forbid comparing them."""


class DiskFull(ImatrixLabError):
    """There is not enough room; nothing that was whole has been touched."""
