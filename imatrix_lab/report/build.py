"""The parts of a report in their order."""

from collections.abc import Callable
from dataclasses import dataclass

from imatrix_lab.report import text
from imatrix_lab.report.blocks import Section
from imatrix_lab.report.lookup import View
from imatrix_lab.report.results import Results
from imatrix_lab.report.sections import flips, kinds, measured, provenance, verdicts, votes

_PARTS: tuple[tuple[str, Callable[[View], Section | None]], ...] = (
    ("comparisons with a baseline", verdicts.matrix),
    ("paired differences", verdicts.differences),
    ("votes of people", votes.votes),
    ("interactions of calibration and language", verdicts.interactions),
    ("types and quantizers at one size", kinds.contrasts),
    ("calibrations by quantizer", kinds.interactions),
    ("divergence by size", measured.size),
    ("divergence by size and method", kinds.frontier),
    ("types of tensors", kinds.tensor_types),
    ("predicted divergences", kinds.predicted),
    ("mixtures of two languages", measured.mixtures),
    ("predicted losses", measured.predicted),
    ("activations by language", measured.activations),
    ("similarity of imatrices", measured.similarity),
    ("tasks with changed answers", flips.flips),
    ("controls", provenance.controls),
    ("power", provenance.power),
    ("scores", measured.scores),
    ("methods", provenance.methods),
    ("models and files", provenance.files),
    ("commands", provenance.commands),
    ("signatures", provenance.signatures),
    ("licences", provenance.licences),
)


@dataclass(frozen=True)
class Outline:
    """A report: first facts (name, value) and warnings, then the sections."""

    title: str
    name: str
    answer: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]


def outline(results: Results) -> Outline:
    """Return the parts that a study has; the last one names those it does not have."""
    view = View(results)
    parts = [(name, build(view)) for name, build in _PARTS]
    warnings = [
        f"Not of one size: {gap}. The difference may be that of size." for gap in results.size_gaps
    ]
    if n := len(results.refused):
        warnings.append(f"{n} comparisons of types were left out: their files are not of one size.")
    if n := len(results.missing):
        warnings.append(f"{n} step{'s' if n > 1 else ''} failed: see “Missing” at the end.")
    if results.reduced:
        warnings.append("This is the recipe’s reduced form on the demo model, not the full study.")
    texts = dict.fromkeys(s.text for s in results.scores)
    facts = (
        ("Model" if len(results.models) == 1 else "Models", ", ".join(results.models)),
        ("Quant types", ", ".join(results.types)),
        ("Calibrations", ", ".join(view.labels)),
        ("Evaluated on", ", ".join(map(view.text, texts))),
        ("Baseline", results.baseline),
        ("After", results.source),
    )
    missing = provenance.missing(view, [name for name, part in parts if part is None])
    return Outline(
        title=results.question or results.name,
        name=results.name,
        answer=results.answer,
        facts=tuple((name, text.visible(value)) for name, value in facts if value),
        warnings=tuple(warnings),
        sections=tuple(part for _, part in [*parts, ("", missing)] if part),
    )
