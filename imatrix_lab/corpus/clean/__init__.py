"""Cleaning: a document passes, is repaired, or is dropped with a reason.

The order of the steps matters. Markup goes first, since entities hide every other fault. Mojibake
is repaired before Unicode is normalised, which would destroy its bytes. The language is identified
once the text is final; personal data are then looked for in what is left. Duplicates are found
last, on text that no longer differs by its faults.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from imatrix_lab.core import process
from imatrix_lab.corpus.clean import (
    boilerplate,
    duplicates,
    language,
    markup,
    mojibake,
    normalise,
    personal,
)
from imatrix_lab.corpus.clean.report import DOCUMENTS, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules, drop_short_document, drop_short_paragraphs
from imatrix_lab.corpus.documents import batches
from imatrix_lab.types import Document

CLEAN_VERSION = 1
"""Raise it when the same text comes out other than before. 1: the first."""

BATCH_CHARS = 1 << 19
"""Documents pass in batches of about this size: large enough for arrays, small in memory."""

Step = Callable[[Sequence[Draft], Rules, Report], None]

STEPS: tuple[tuple[str, Step], ...] = (
    ("markup", markup.strip),
    ("mojibake", mojibake.repair),
    ("unicode", normalise.normalise),
    ("boilerplate", boilerplate.drop),
    ("script", language.by_script),
    ("language", language.by_words),
    ("personal", personal.replace),
    ("length", drop_short_paragraphs),
)
"""The steps that look at one document at a time, in order. Each changes drafts in place."""

FOR_PROSE = {"markup", "boilerplate", "script", "language"}
"""Steps that are skipped for a text in no natural language."""

Cleaned = tuple[list[Draft], list[duplicates.Hashes], Report]


def clean(
    documents: Iterable[Document], rules: Rules, report: Report, workers: int = 1
) -> Iterator[Document]:
    """Yield what is left of documents, in their order; `report` grows as they pass.

    Memory does not grow with the text beyond the bounds of `duplicates`. The output is the same for
    any number of workers, which do the `STEPS`; duplicates are found in this process.
    """
    report.labels = rules.labels
    seen = duplicates.Duplicates(rules)
    work = functools.partial(clean_batch, rules=rules)
    batched = batches(documents, BATCH_CHARS, lambda d: len(d.text))
    for drafts, hashes, batch_report in process.in_order(work, batched, workers):
        report.add(batch_report)
        for draft, own in zip(drafts, hashes, strict=True):
            if draft.paragraphs:
                seen.drop(draft, own, report)
            drop_short_document(draft, rules, report)
            if draft.paragraphs:
                text = draft.text
                report.documents_out += 1
                report.bytes_out += len(text.encode())
                yield replace(draft.document, text=text)


def apply(step: Step, drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Run one step; a document that lost its last paragraph counts as dropped."""
    before = report.total(report.step, DOCUMENTS)
    step(drafts, rules, report)
    emptied = sum(not draft.paragraphs for draft in drafts)
    dropped = report.total(report.step, DOCUMENTS) - before
    if emptied > dropped:
        report.counts[report.step, "nothing left", DOCUMENTS] += emptied - dropped


def clean_batch(batch: Sequence[Document], rules: Rules) -> Cleaned:
    """Return what the steps leave of a batch, its hashes for `duplicates`, and the counts."""
    report = Report(labels=rules.labels)
    report.documents_in = len(batch)
    report.bytes_in = sum(len(d.text.encode("utf-8", "surrogatepass")) for d in batch)
    drafts = [Draft.of(document) for document in batch]
    for report.step, step in STEPS:
        if rules.prose or report.step not in FOR_PROSE:
            apply(step, drafts, rules, report)
            drafts = [draft for draft in drafts if draft.paragraphs]
    for draft in drafts:  # the raw text need not travel back from a worker
        draft.document = replace(draft.document, text="")
    return drafts, duplicates.hashes(drafts), report
