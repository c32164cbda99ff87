"""What cleaning did: counts by step and reason, and the first few texts of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 3
SAMPLE_CHARS = 300

DOCUMENTS, PARAGRAPHS, LINES, CHANGES = (
    "documents_dropped", "paragraphs_dropped", "lines_dropped", "changes",
)  # fmt: skip


@dataclass
class Report:
    """A tally that grows while documents pass.

    Attributes
    ----------
    counts : by (step, reason, unit); the units are the four words of this module.
    language_bytes : bytes of identified paragraphs by label, of all text and of what was kept.
    step : the one that is at work.
    samples : ``{"step", "reason", "id", "text"}``, `SAMPLES` of each reason.
    """

    documents_in: int = 0
    documents_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    labels: tuple[str, ...] = ()
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    language_bytes: Counter[tuple[str, bool]] = field(default_factory=Counter)
    samples: list[dict[str, str]] = field(default_factory=list)
    step: str = ""
    _sampled: Counter[tuple[str, str]] = field(default_factory=Counter)

    def count(self, reason: str, unit: str, where: str, text: str, n: int = 1) -> None:
        """Count what the step did `n` times in document `where`, and keep the text if it is early.

        Parameters
        ----------
        unit : `DOCUMENTS`, `PARAGRAPHS`, `LINES` or `CHANGES`.
        """
        self.counts[self.step, reason, unit] += n
        if self._sampled[self.step, reason] < SAMPLES:
            self._sample({"step": self.step, "reason": reason, "id": where, "text": text})

    def _sample(self, sample: dict[str, str]) -> None:
        key = sample["step"], sample["reason"]
        if self._sampled[key] < SAMPLES:
            self._sampled[key] += 1
            self.samples.append(sample | {"text": sample["text"][:SAMPLE_CHARS]})

    def add(self, other: Report) -> None:
        """Take in what was counted elsewhere, after what is here."""
        self.documents_in += other.documents_in
        self.documents_out += other.documents_out
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out
        self.labels = self.labels or other.labels
        self.counts.update(other.counts)
        self.language_bytes.update(other.language_bytes)
        for sample in other.samples:
            self._sample(sample)

    def total(self, step: str, *units: str) -> int:
        """Return how often a step acted, in these units or in any."""
        return sum(n for (s, _, u), n in self.counts.items() if s == step and u in (units or (u,)))

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-able facts.

        ``language_share`` is of the bytes in paragraphs long enough to be identified: in the
        text as it came, and in what was kept. None where nothing was identified.
        """
        steps: dict[str, dict[str, dict[str, int]]] = {}
        for (step, reason, unit), n in sorted(self.counts.items()):
            steps.setdefault(step, {}).setdefault(reason, {})[unit] = n
        return {
            "documents_in": self.documents_in,
            "documents_out": self.documents_out,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "language_share_in": self._share(self.language_bytes),
            "language_share": self._share(
                {key: n for key, n in self.language_bytes.items() if key[1]}
            ),
            "duplicates_removed": self.total("duplicates", DOCUMENTS),
            "repeats_removed": self.total("duplicates", PARAGRAPHS, LINES),
            "pii_removed": self.total("personal"),
            "steps": steps,
        }

    def _share(self, found: dict[tuple[str, bool], int]) -> float | None:
        total = sum(found.values())
        ours = sum(n for (label, _), n in found.items() if label in self.labels)
        return round(ours / total, 4) if total else None
