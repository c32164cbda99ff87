"""What cleaning must know of a language, the drafts it works on, and the rule on length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imatrix_lab.corpus.clean.report import DOCUMENTS, PARAGRAPHS, Report
from imatrix_lab.corpus.languages import Language
from imatrix_lab.types import Document

DENSITY = {"Jpan": 0.4, "Hans": 0.33, "Hant": 0.33, "Hani": 0.33, "Kore": 0.5}
"""Characters that the same text takes in a script, relative to Latin (parallel news)."""

_BREAK = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")


@dataclass(frozen=True)
class Rules:
    """One language's thresholds; None for the script's default.

    The script is ISO 15924, as in BCP 47 ("Latn", "Mlym", "Jpan"). "Zyyy" is program code: it keeps
    spaces and marks, and is neither identified nor judged as prose. A language without labels is
    recognised by its script alone: at least `script_share_min` of a paragraph's letters, weighed
    by `density`.
    """

    script: str
    labels: tuple[str, ...]
    document_chars_min: int | None = None
    paragraph_chars_min: int | None = None
    script_share_min: float = 0.5

    @classmethod
    def of(cls, language: Language) -> Rules:
        """Return the rules of a language."""
        limits: dict[str, Any] = dict(language.clean)
        return cls(language.script, tuple(language.labels), **limits)

    @property
    def prose(self) -> bool:
        """Whether this is natural language."""
        return self.script != "Zyyy"

    def chars(self, latin: int) -> int:
        """Return how many characters of this script say as much as `latin` characters of Latin."""
        return max(1, round(latin * self.density))

    @property
    def density(self) -> float:
        """See `DENSITY`."""
        return DENSITY.get(self.script, 1.0)

    @property
    def document_min(self) -> int:
        """Characters a document must have."""
        return self.chars(200) if self.document_chars_min is None else self.document_chars_min

    @property
    def paragraph_min(self) -> int:
        """Characters a paragraph must have."""
        return self.chars(4) if self.paragraph_chars_min is None else self.paragraph_chars_min


@dataclass
class Draft:
    """A document on its way through the steps; it is dropped when it has no paragraphs left."""

    document: Document
    paragraphs: list[str]

    @classmethod
    def of(cls, document: Document) -> Draft:
        """Return a document's draft."""
        return cls(document, split(document.text.replace("\r\n", "\n").replace("\r", "\n")))

    def drop(self, reasons: Mapping[int, str], report: Report) -> None:
        """Drop paragraphs, by place, and count why."""
        for i, reason in reasons.items():
            report.count(reason, PARAGRAPHS, self.document.id, self.paragraphs[i])
        self.paragraphs = [p for i, p in enumerate(self.paragraphs) if i not in reasons]

    def empty(self, reason: str, report: Report) -> None:
        """Drop the whole document, and count why."""
        report.count(reason, DOCUMENTS, self.document.id, self.text)
        self.paragraphs = []

    @property
    def text(self) -> str:
        """The current text."""
        return "\n\n".join(self.paragraphs)


def split(text: str) -> list[str]:
    """Return the paragraphs of a text: what is between blank lines."""
    return [p for p in _BREAK.split(text.strip("\n")) if p and not p.isspace()]


def drop_short_paragraphs(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Drop paragraphs shorter than the language's rules allow."""
    for draft in drafts:
        is_short = [len(p) < rules.paragraph_min for p in draft.paragraphs]
        draft.drop({i: "short paragraph" for i, short in enumerate(is_short) if short}, report)


def drop_short_document(draft: Draft, rules: Rules, report: Report) -> None:
    """Empty a draft shorter than the language's rules allow."""
    report.step = "length"
    if draft.paragraphs and len(draft.text) < rules.document_min:
        draft.empty("short document", report)
