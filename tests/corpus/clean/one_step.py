"""Run one step of cleaning on one text."""

from imatrix_lab.corpus.clean.report import Report
from imatrix_lab.corpus.clean.rules import Draft, Rules
from imatrix_lab.types import Document

LATIN = Rules("Latn", ("no",))
PROSE = "Dette er en hel setning med nok ord til at den ikke er et bruddstykke av en meny."


def after(step, text: str, rules: Rules = LATIN) -> tuple[str, Report]:
    """The text that a step leaves, and its report."""
    report = Report(step="it")
    draft = Draft.of(Document("d", text, "test", "none"))
    step([draft], rules, report)
    return draft.text, report


def reasons(report: Report) -> set[str]:
    return {reason for _, reason, _ in report.counts}
