"""What a check of an importance matrix reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import BadImatrix

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One problem, its effect on a quant, and the fix; `repair.repair` does it if ``mendable``.

    `ERROR` stops the file before the quantizer, `WARNING` costs quality, `NOTE` nothing.
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
    """All findings, errors first, and how many (tensor, expert) pairs saw no token."""

    all: tuple[Finding, ...]
    n_without_tokens: int = 0

    def of(self, severity: str) -> list[Finding]:
        """Return the findings of one severity."""
        return [f for f in self.all if f.severity == severity]

    def with_more(self, more: Sequence[Finding]) -> Findings:
        """Return these and other findings, errors first."""
        ordered = sorted((*self.all, *more), key=lambda f: SEVERITIES.index(f.severity))
        return Findings(tuple(ordered), self.n_without_tokens)

    def require_sound(self, where: Path, fix: str, progress: Progress, force: bool = False) -> str:
        """Report warnings; raise BadImatrix on errors, or with `force` return them as text."""
        for finding in self.of(WARNING):
            progress.say(f"warning: {finding.what}: {finding.effect}")
        if not (errors := self.of(ERROR)):
            return ""
        problems = "; ".join(f"{e.what} ({e.effect})" for e in errors)
        if not force:
            raise BadImatrix(f"unusable importance matrix: {problems}", where=where, fix=fix)
        progress.say(f"WARNING: used despite its errors (--force): {problems}")
        return "; ".join(e.what for e in errors)
