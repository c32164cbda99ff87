"""The model card: front matter for the Hub, what the files are, what is known of them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from imatrix_lab.core import config
from imatrix_lab.core.files import canonical_json
from imatrix_lab.core.format import probability, size, with_error
from imatrix_lab.corpus.languages import load_all
from imatrix_lab.errors import UsageError
from imatrix_lab.report.results import Comparison, Results
from imatrix_lab.types import Model

Entries = Mapping[str, dict[str, Any]]
"""Files of a manifest by name."""

_COLUMNS = (
    "text", "task", "type", "b", "words", "unit", "estimate", "low", "high", "p_adjusted", "verdict"
)  # fmt: skip
_OTHER = {"better": "worse", "worse": "better"}


def card(files: Entries) -> str:
    """Return a model card."""
    quants = {n: e for n, e in sorted(files.items()) if e["kind"] == "quant"}
    names = ", ".join(sorted({e["model_name"] for e in quants.values()}))
    lines = [*_front(quants), "", f"# GGUF files of {names}", "", *_table(quants)]
    lines += _quick(quants)
    studies = {canonical_json(e["study"]): e["study"] for e in files.values() if e.get("study")}
    for _, study in sorted(studies.items()):
        lines += _study(study, quants)
    lines += ["", "## How these files were made", ""]
    lines += [f"    {command}" for command in sorted({e["command"] for e in quants.values()})]
    lines += ["", *(f"- {text}" for text in sorted({e["provenance"] for e in quants.values()}))]
    lines += [
        "",
        "Perplexity is over the first held-out windows of the same source as the calibration text,"
        " by llama-perplexity: a check that the file works, not a benchmark.",
        "",
    ]
    notes = sorted({e["note"] for e in quants.values() if e.get("note")})
    lines += [f"{note}\n" for note in notes]
    for name, e in quants.items():
        if e.get("forced"):
            lines.append(f"{name} was made with an imatrix that failed its check: {e['forced']}.\n")
    return "\n".join(lines)


def _front(quants: Entries) -> list[str]:
    bases = sorted({e["base_model"] for e in quants.values() if e["base_model"]})
    # the Hub knows languages by code; an imatrix over the user's own text may have none
    natural = {code for code, language in load_all().items() if language.script != "Zyyy"}
    languages = sorted({e["language"] for e in quants.values()} & natural)
    licences = sorted({e["license"] for e in quants.values() if e["license"]})
    front = ["---"]
    front += ["base_model:", *(f"- {b}" for b in bases)] if bases else []
    front += ["language:", *(f"- {c}" for c in languages)] if languages else []
    front += [f"license: {licences[0]}"] if len(licences) == 1 else []
    front += ["library_name: gguf", "tags:", "- imatrix", "- llama.cpp"]
    return [*front, "quantized_by: ''", "---"]


def _table(quants: Entries) -> list[str]:
    lines = [
        "| file | language of the imatrix | type | size | bits per weight | perplexity"
        " (this file / original) | fallback tensors |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for name, e in quants.items():
        lines.append(
            f"| {name} | {e['language'] or 'none'} | {e['type']}"
            f" | {size(e['size_bytes'])}"
            f" | {e['bits_per_weight']:.2f}"
            f" | {e['perplexity']:.4f} / {e['perplexity_reference']:.4f}"
            f" | {len(e['fallback'])} |"
        )
    return lines


def _quick(quants: Entries) -> list[str]:
    """Return the small answers there are."""
    answers = [(name, e["quick"]) for name, e in quants.items() if e.get("quick")]
    if not answers:
        return []
    lines = ["", "## What the tuning bought", ""]
    lines += [f"- {name}: {found['sentence']}" for name, found in answers]
    return [
        *lines,
        "",
        "The divergence (KLD) is over the whole vocabulary, the difference paired by document. One"
        " text for each imatrix: what another text of the same language would do was not measured.",
        f"Measured with {'; '.join(sorted({_signed(f['signature']) for _, f in answers}))}.",
    ]


def _signed(signature: Mapping[str, Any]) -> str:
    """Return what signs a number, in words."""
    tools = signature["toolchain"]
    words = [
        f"llama.cpp {tools['commit']} ({tools['backend']})",
        f"imatrix_lab {signature['package_version']}",
    ]
    for name in ("reference", "text"):
        if sha256 := signature.get(name, {}).get("sha256"):
            words.append(f"{name} {sha256[:12]}")
    return ", ".join(words)


def of_study(found: Results, model: Model, language: str) -> dict[str, Any]:
    """Return what a study says of a language's calibration, for the manifest and the card.

    Raises
    ------
    UsageError : it is of another model, or compares no calibration of this language.
    """
    labels = [name for name, facts in found.models.items() if facts.get("sha256") == model.sha256]
    if not labels:
        raise UsageError(
            f"the study {found.name} is of another model than {model.label}",
            fix=f"its models: {', '.join(found.models)}",
        )  # fmt: skip
    about = [
        c if c.a == language else _turned(c)
        for c in found.comparisons
        if c.model in labels and language in (c.a, c.b)
    ]
    if not about:
        known = dict.fromkeys(c.label for c in found.calibrations)
        raise UsageError(
            f"the study {found.name} compares nothing with the calibration {language}",
            fix=f"its calibrations: {', '.join(known)}",
        )  # fmt: skip
    mine = [c for c in found.calibrations if c.model in labels and c.label == language]
    keys = dict.fromkeys(key for c in about for key in c.signatures)
    return {
        "name": found.name,
        "language": language,
        "answer": list(found.answer),
        "imatrix_sha256": [c.imatrix_sha256 for c in mine],
        "imatrix_tokens": [c.n_tokens for c in mine],
        "comparisons": [{k: v for k, v in config.plain(c).items() if k in _COLUMNS} for c in about],
        "signed": sorted({_signed(found.signatures[key]) for key in keys}),
        "commands": list(found.commands),
        "reduced": found.reduced,
    }


def _turned(c: Comparison) -> Comparison:
    """Return a comparison as B minus A."""
    return dataclasses.replace(
        c, a=c.b, b=c.a, estimate=-c.estimate, low=-c.high, high=-c.low,
        verdict=_OTHER.get(c.verdict, c.verdict),
    )  # fmt: skip


def _study(study: Mapping[str, Any], files: Entries) -> list[str]:
    """Return what a study says of the types that are here."""
    mine = [e for e in files.values() if e["language"] == study["language"]]
    rows = [c for c in study["comparisons"] if c["type"] in {e["type"] for e in mine}]
    if not rows:
        return []
    lines = ["", f"## Compared in the study {study['name']}", "", *study["answer"], ""]
    lines += [
        f"| text | type | {study['language']} against | measure | difference | 95 % interval"
        " | p, adjusted | verdict |",
        "|---|---|---|---|---:|---:|---:|---|",
    ]
    lines += [_row(c) for c in rows]
    same = {e["imatrix_sha256"] for e in mine} <= set(study["imatrix_sha256"])
    tokens = " and ".join(f"{n:,}" for n in study["imatrix_tokens"])
    which = "The imatrix of these files is one of the study's."
    if not same:
        which = (
            f"The study computed its own imatrices of {study['language']} ({tokens} tokens): it"
            " speaks of this way to make files, not of these very files."
        )
    reduced = " It ran in its reduced form." if study["reduced"] else ""
    lines += [
        "",
        f"Differences are {study['language']} minus the other. {which}{reduced}"
        f" Measured with {'; '.join(study['signed'])}. To repeat it:",
        "",
    ]
    return lines + [f"    {command}" for command in study["commands"]]


def _row(c: Mapping[str, Any]) -> str:
    estimate, low, high, p = (math.nan if c[k] is None else c[k]
                              for k in ("estimate", "low", "high", "p_adjusted"))  # fmt: skip
    error = (high - low) / 4  # an interval is about four standard errors wide
    say = [with_error(v, error) for v in (estimate, low, high)]
    where = f"{c['task']} {c['text']}".strip()
    cells = [where, c["type"], c["b"], f"{c['words']}, {c['unit']}", say[0],
             f"{say[1]} … {say[2]}", probability(p), c["verdict"]]  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
