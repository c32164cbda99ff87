"""What cleaning did: counts by step and reason, and the first few texts of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 3
SAMPLE_CHARS = 300

DOCUMENTS, PARAGRAPHS, LINES = "documents_dropped", "paragraphs_dropped", "lines_dropped"
CHANGES = "changes"
_SIZES = ("documents_in", "documents_out", "bytes_in", "bytes_out")


@dataclass
class Report:
    """Counts that grow while documents pass, by (`step`, reason, unit: a constant here).

    `language_bytes` are those of identified paragraphs, by (label, whether they were kept);
    `samples` are ``{"step", "reason", "id", "text"}``, `SAMPLES` of each reason.
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
        """Count what the step did `n` times in document `where`; keep the first texts."""
        self.counts[self.step, reason, unit] += n
        self._sample({"step": self.step, "reason": reason, "id": where, "text": text})

    def _sample(self, sample: dict[str, str]) -> None:
        key = sample["step"], sample["reason"]
        if self._sampled[key] < SAMPLES:
            self._sampled[key] += 1
            self.samples.append(sample | {"text": sample["text"][:SAMPLE_CHARS]})

    def add(self, other: Report) -> None:
        """Add the counts and samples of a later report."""
        for name in _SIZES:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.labels = self.labels or other.labels
        self.counts.update(other.counts)
        self.language_bytes.update(other.language_bytes)
        for sample in other.samples:
            self._sample(sample)

    def total(self, step: str, *units: str) -> int:
        """Return how often a step acted, in these units or in all."""
        return sum(n for (s, _, u), n in self.counts.items() if s == step and u in (units or (u,)))

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values.

        ``language_share`` is the language's share of the bytes in paragraphs long enough to be
        identified: in the raw text (``_in``) and in what was kept. None if none was identified.
        """
        steps: dict[str, dict[str, dict[str, int]]] = {}
        for (step, reason, unit), n in sorted(self.counts.items()):
            steps.setdefault(step, {}).setdefault(reason, {})[unit] = n
        kept = {key: n for key, n in self.language_bytes.items() if key[1]}
        return {
            **{name: getattr(self, name) for name in _SIZES},
            "language_share_in": self._share(self.language_bytes),
            "language_share": self._share(kept),
            "duplicates_removed": self.total("duplicates", DOCUMENTS),
            "repeats_removed": self.total("duplicates", PARAGRAPHS, LINES),
            "pii_removed": self.total("personal"),
            "steps": steps,
        }

    def _share(self, label_bytes: dict[tuple[str, bool], int]) -> float | None:
        total = sum(label_bytes.values())
        own = sum(n for (label, _), n in label_bytes.items() if label in self.labels)
        return round(own / total, 4) if total else None
