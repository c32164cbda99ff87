"""The parts of a report in their order."""

from collections.abc import Callable
from dataclasses import dataclass

from imatrix_lab.report import text
from imatrix_lab.report.blocks import Section
from imatrix_lab.report.lookup import View
from imatrix_lab.report.results import Results
from imatrix_lab.report.sections import flips, measured, provenance, verdicts

_PARTS: tuple[tuple[str, Callable[[View], Section | None]], ...] = (
    ("comparisons with a baseline", verdicts.matrix),
    ("paired differences", verdicts.differences),
    ("contrasts of languages", verdicts.interactions),
    ("divergence against size", measured.size),
    ("mixtures of two languages", measured.mixtures),
    ("predicted losses", measured.predicted),
    ("similarity of imatrices", measured.similarity),
    ("tasks with answers that flip", flips.flips),
    ("controls", provenance.controls),
    ("power", provenance.power),
    ("scores", measured.scores),
    ("methods", provenance.methods),
    ("models and files", provenance.made),
    ("commands", provenance.repeat),
    ("signatures", provenance.signatures),
    ("licences", provenance.licences),
)


@dataclass(frozen=True)
class Outline:
    """A report.

    Attributes
    ----------
    facts : name and value, of what a reader wants to know first.
    warnings : what must be known before a number is read.
    """

    title: str
    name: str
    answer: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]


def outline(found: Results) -> Outline:
    """Return the parts that a study has; those it has not are named in the last one."""
    view = View(found)
    parts = [(name, make(view)) for name, make in _PARTS]
    sections = [part for _, part in parts if part]
    last = provenance.missing(view, [name for name, part in parts if part is None])
    return Outline(
        found.question or found.name, found.name, found.answer, _facts(view), _warnings(found),
        tuple([*sections, last] if last else sections),
    )  # fmt: skip


def _facts(view: View) -> tuple[tuple[str, str], ...]:
    found = view.found
    texts = dict.fromkeys(s.text for s in found.scores)
    facts = (
        ("Model" if len(found.models) == 1 else "Models", ", ".join(found.models)),
        ("Types", ", ".join(found.types)),
        ("Calibrations", ", ".join(view.labels)),
        ("Judged on", ", ".join(map(view.text, texts))),
        ("Compared with", found.baseline),
        ("After", found.source),
    )
    return tuple((name, text.visible(value)) for name, value in facts if value)


def _warnings(found: Results) -> tuple[str, ...]:
    said = []
    if found.missing:
        n = len(found.missing)
        said.append(
            f"{n} step{'s' if n > 1 else ''} failed; what is missing is said at the end."
        )  # fmt: skip
    if found.reduced:
        said.append("This is the recipe’s reduced form on the demo model, not the full study.")
    return tuple(said)
