"""The model card: front matter for the Hub, the files, and what was measured of them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from imatrix_lab.core import config, format
from imatrix_lab.core.files import canonical_json
from imatrix_lab.corpus.languages import load_all
from imatrix_lab.errors import UsageError
from imatrix_lab.report.results import Comparison, Results
from imatrix_lab.types import Model

Entries = Mapping[str, dict[str, Any]]
"""Files of a manifest by name."""

_COLUMNS = ["text", "task", "type", "b", "words", "unit"]
_COLUMNS += ["estimate", "low", "high", "p_adjusted", "verdict"]
_OTHER = {"better": "worse", "worse": "better"}


def card(files: Entries) -> str:
    """Return a model card."""
    quants = {n: e for n, e in sorted(files.items()) if e["kind"] == "quant"}
    names = ", ".join(sorted({e["model_name"] for e in quants.values()}))
    lines = [*_front(quants), "", f"# GGUF files of {names}", "", *_table(quants)]
    lines += _chosen(quants)
    lines += _quick(quants)
    studies = {canonical_json(e["study"]): e["study"] for e in files.values() if e.get("study")}
    for _, study in sorted(studies.items()):
        lines += _study(study, quants)
    lines += ["", "## How these files were made", ""]
    lines += [f"    {command}" for command in sorted({e["command"] for e in quants.values()})]
    lines += ["", *(f"- {text}" for text in sorted({e["provenance"] for e in quants.values()}))]
    lines += ["", *sorted({_perplexity(e) for e in quants.values()})]
    lines += ["", "Perplexity is by llama-perplexity: a smoke test, not a benchmark.", ""]
    notes = sorted({e["note"] for e in quants.values() if e.get("note")})
    lines += [f"{note}\n" for note in notes]
    for name, e in quants.items():
        if e.get("scaled"):
            lines.append(f"{name}: {e['scaled']}.\n")
        if e.get("forced"):
            lines.append(f"{name} was made with an imatrix that failed its check: {e['forced']}.\n")
    return "\n".join(lines)


def _front(quants: Entries) -> list[str]:
    bases = sorted({e["base_model"] for e in quants.values() if e["base_model"]})
    # the Hub takes codes only; an imatrix over the user's own text may have none
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
    return lines + [
        f"| {name} | {_imatrix(e)} | {e['type']} | {format.size(e['size_bytes'])}"
        f" | {e['bits_per_weight']:.2f} | {e['perplexity']:.4f} / {e['perplexity_reference']:.4f}"
        f" | {len(e['fallback'])} |"
        for name, e in quants.items()
    ]


def _imatrix(e: Mapping[str, Any]) -> str:
    """Return the language of a quant's imatrix; that of another's file only if it records one."""
    if e["language"] or not (name := e.get("imatrix")):
        return e["language"] or "none"
    return f"not recorded ({name.replace('|', chr(92) + '|')})"


def _perplexity(e: Mapping[str, Any]) -> str:
    """Return what text a quant's perplexity is of, as far as it is recorded."""
    windows = f"the first {e['n_windows']} windows" if e.get("n_windows") else "some windows"
    line = f"- perplexity over {windows} of "
    if not (text := e.get("heldout")):
        return f"{line}a text that is not recorded"
    line += f"{text} (sha256 {e['heldout_sha256'][:12]})"
    if e["imatrix_sha256"] and not e["corpus_sha256"]:
        line += "; whether the imatrix was computed from the same text is not recorded"
    return line


def _chosen(quants: Entries) -> list[str]:
    """Return which types were chosen for a size, by role, and what was predicted of them."""
    lines = list[str]()
    for name, chosen in ((n, e["chosen"]) for n, e in quants.items() if e.get("chosen")):
        weights = ", ".join(f"{x} ({weight:g})" for x, weight in chosen["weights"].items())
        lines += [
            f"{name}, for {weights}: at most {format.size(chosen['limit_bytes'])};"
            f" {name.removesuffix('.gguf')}.types.txt has the type of each tensor.",
            "",
            "| role | types (tensors) |",
            "|---|---|",
            *(f"| {role} | {_counted(types)} |" for role, types in chosen["types_by_role"].items()),
            "",
            f"| language | predicted KLD, nats a token | of {chosen['standard']}"
            f" ({format.size(chosen['standard_size_bytes'])}) | sensitivities, sha256 |",
            "|---|---:|---:|---|",
            *(
                f"| {x} | {format.number(nats)} | {format.number(chosen['standard_kld_nats'][x])}"
                f" | {chosen['sensitivities'][x][:12]} |"
                for x, nats in chosen["predicted_kld_nats"].items()
            ),
            "",
        ]
    if not lines:
        return []
    explanation = (
        "Each tensor's type was chosen by how much the predictions of a language suffer from errors"
        " in it. A language that is not named here may lose more than with a standard type."
    )
    return ["", "## Types chosen for a size", "", explanation, "", *lines[:-1]]


def _counted(types: Mapping[str, int]) -> str:
    return ", ".join(f"{type_name} ({n})" for type_name, n in types.items())


def _quick(quants: Entries) -> list[str]:
    answers = {name: e["quick"] for name, e in quants.items() if e.get("quick")}
    if not answers:
        return []
    signatures = sorted({_signature(answer["signature"]) for answer in answers.values()})
    return [
        "",
        "## Compared on a few documents",
        "",
        *(f"- {name}: {answer['sentence']}" for name, answer in answers.items()),
        "",
        "KLD is the Kullback-Leibler divergence over the whole vocabulary; differences are paired"
        " by document. Each imatrix is over one text; another text of the same language was not"
        " measured.",
        f"Measured with {'; '.join(signatures)}.",
    ]


def _signature(signature: Mapping[str, Any]) -> str:
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
        "signed": sorted({_signature(study.signatures[key]) for key in keys}),
        "commands": list(study.commands),
        "reduced": study.reduced,
    }


def _swapped(c: Comparison) -> Comparison:
    """Return a comparison as B minus A."""
    verdict = _OTHER.get(c.verdict, c.verdict)
    return dataclasses.replace(
        c, a=c.b, b=c.a, estimate=-c.estimate, low=-c.high, high=-c.low, verdict=verdict
    )


def _study(study: Mapping[str, Any], files: Entries) -> list[str]:
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
