"""Too short to be running text."""

from __future__ import annotations

from collections.abc import Sequence

from imatrix_lab.corpus.clean.report import DOCUMENTS, PARAGRAPHS, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules


def paragraphs(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Drop short paragraphs."""
    for draft in drafts:
        kept = []
        for paragraph in draft.paragraphs:
            if len(paragraph) >= rules.paragraph_min:
                kept.append(paragraph)
            else:
                report.count("short paragraph", PARAGRAPHS, draft.document.id, paragraph)
        draft.paragraphs = kept


def document(draft: Draft, rules: Rules, report: Report) -> None:
    """Drop a short document."""
    report.step = "length"
    if draft.paragraphs and len(draft.text) < rules.document_min:
        report.count("short document", DOCUMENTS, draft.document.id, draft.text)
        draft.paragraphs = []
