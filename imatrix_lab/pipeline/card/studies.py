"""What a study says of files, for their manifest and card."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from imatrix_lab.core import config, format
from imatrix_lab.errors import UsageError
from imatrix_lab.report.results import Comparison, Results
from imatrix_lab.types import Model

Entries = Mapping[str, dict[str, Any]]
"""Files of a manifest by name."""

_COLUMNS = ["text", "task", "type", "b", "words", "unit"]
_COLUMNS += ["estimate", "low", "high", "p_adjusted", "verdict"]
_OTHER = {"better": "worse", "worse": "better"}


def signature_words(signature: Mapping[str, Any]) -> str:
    """Return in words what a number was measured with."""
    tools = signature["toolchain"]
    words = [
        f"llama.cpp {tools['commit']} ({tools['backend']})",
        f"imatrix_lab {signature['package_version']}",
    ]
    for name in ("reference", "text"):
        if sha256 := signature.get(name, {}).get("sha256"):
            words.append(f"{name} {sha256[:12]}")
    return ", ".join(words)


def of_study(study: Results, model: Model, language: str) -> dict[str, Any]:
    """Return what a study says of a language's calibration, for the manifest and the card.

    Raises UsageError: it is of another model, or compares no calibration of this language.
    """
    labels = [name for name, facts in study.models.items() if facts.get("sha256") == model.sha256]
    if not labels:
        raise UsageError(
            f"the study {study.name} is of another model than {model.label}",
            fix=f"its models: {', '.join(study.models)}",
        )
    comparisons = [
        c if c.a == language else _swapped(c)
        for c in study.comparisons
        if c.model in labels and language in (c.a, c.b)
    ]
    if not comparisons:
        known = dict.fromkeys(c.label for c in study.calibrations)
        raise UsageError(
            f"the study {study.name} compares nothing with the calibration {language}",
            fix=f"its calibrations: {', '.join(known)}",
        )
    own = [c for c in study.calibrations if c.model in labels and c.label == language]
    keys = {key for c in comparisons for key in c.signatures}
    rows = [config.plain(c) for c in comparisons]
    return {
        "name": study.name,
        "language": language,
        "answer": list(study.answer),
        "imatrix_sha256": [c.imatrix_sha256 for c in own],
        "imatrix_tokens": [c.n_tokens for c in own],
        "comparisons": [{k: v for k, v in row.items() if k in _COLUMNS} for row in rows],
        "votes": [p.plain for p in study.preferences if p.model in labels],
        "signed": sorted({signature_words(study.signatures[key]) for key in keys}),
        "commands": list(study.commands),
        "reduced": study.reduced,
    }


def _swapped(c: Comparison) -> Comparison:
    """Return a comparison as B minus A."""
    verdict = _OTHER.get(c.verdict, c.verdict)
    return dataclasses.replace(
        c, a=c.b, b=c.a, estimate=-c.estimate, low=-c.high, high=-c.low, verdict=verdict
    )


def section(study: Mapping[str, Any], files: Entries) -> list[str]:
    """Return what a study says of the types that are here."""
    language = study["language"]
    own = [e for e in files.values() if e["language"] == language]
    rows = [c for c in study["comparisons"] if c["type"] in {e["type"] for e in own}]
    if not rows:
        return []
    which = "The imatrix of these files is one of the study's."
    if not {e["imatrix_sha256"] for e in own} <= set(study["imatrix_sha256"]):
        tokens = " and ".join(f"{n:,}" for n in study["imatrix_tokens"])
        which = (
            f"The study computed its own imatrices of {language} ({tokens} tokens): it is about"
            " files made in this way, not about these files."
        )
    votes = [f"- {sentence}" for sentence in study.get("votes", ())]
    if votes:
        votes = ["", "Blind votes of people on answers of the study's files:", "", *votes]
    reduced = " It ran its reduced recipe." if study["reduced"] else ""
    return [
        "",
        f"## Compared in the study {study['name']}",
        "",
        *study["answer"],
        "",
        f"| text | type | {language} against | measure | difference | 95 % CI | p, adjusted"
        " | verdict |",
        "|---|---|---|---|---:|---:|---:|---|",
        *map(_row, rows),
        *votes,
        "",
        f"Differences are {language} minus the other. {which}{reduced}"
        f" Measured with {'; '.join(study['signed'])}. To repeat it:",
        "",
        *(f"    {command}" for command in study["commands"]),
    ]


def _row(c: Mapping[str, Any]) -> str:
    numbers = (c[key] for key in ("estimate", "low", "high", "p_adjusted"))
    estimate, low, high, p = (math.nan if n is None else n for n in numbers)
    cells = [
        f"{c['task']} {c['text']}".strip(),
        c["type"],
        c["b"],
        f"{c['words']}, {c['unit']}",
        format.number(estimate, low, high),
        format.interval(low, high) or format.UNKNOWN,
        format.probability(p),
        c["verdict"],
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
