"""What a check finds, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import BadImatrix

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes
    ----------
    severity : `ERROR` keeps the file from the quantizer, `WARNING` costs quality, `NOTE` nothing.
    kind : a word for programs.
    what, effect, remedy : what is there, what it does to a quant, what mends it.
    tensors : those concerned.
    mendable : `repair.repair` has a sound remedy.
    """

    severity: str
    kind: str
    what: str
    effect: str
    remedy: str
    tensors: tuple[str, ...] = ()
    mendable: bool = False


@dataclass(frozen=True)
class Findings:
    """All that was found, errors first, and how many (tensor, expert) pairs saw no token."""

    all: tuple[Finding, ...]
    n_without_tokens: int = 0

    def of(self, severity: str) -> list[Finding]:
        """Return the findings of one severity."""
        return [f for f in self.all if f.severity == severity]

    def require_sound(self, where: Path, fix: str, progress: Progress, force: bool = False) -> str:
        """Say what costs quality; return the errors in words, which only `force` lets pass.

        Raises
        ------
        BadImatrix : there are errors.
        """
        for finding in self.of(WARNING):
            progress.say(f"warning: {finding.what}: {finding.effect}")
        errors = self.of(ERROR)
        words = "; ".join(f"{e.what} ({e.effect})" for e in errors)
        if errors and not force:
            raise BadImatrix(
                f"this importance matrix must not be used: {words}", where=where, fix=fix
            )
        if errors:
            progress.say(f"WARNING: used in spite of its errors, as --force says: {words}")
        return "; ".join(e.what for e in errors)


def some(names: Sequence[str], shown: int = 3) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
