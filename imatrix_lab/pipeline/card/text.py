"""The text of a model card, which the Hub reads: front matter, then Markdown.

Every number in it is from a header, from records or from the manifest, and what was measured in
one language is shown for all that were scored.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imatrix_lab.core import format
from imatrix_lab.core.files import canonical_json
from imatrix_lab.core.names import readable
from imatrix_lab.corpus.languages import load_all
from imatrix_lab.corpus.mixture import is_language, languages_of
from imatrix_lab.llamacpp import size_types
from imatrix_lab.pipeline.card import picture, studies
from imatrix_lab.pipeline.card.facts import CONTEXT
from imatrix_lab.pipeline.card.scores import Against, Scored, Scores
from imatrix_lab.pipeline.card.studies import Entries, signature_words
from imatrix_lab.stats.clustered import Interval
from imatrix_lab.types import NOT_FOR_USE

_PROGRAMS = "[llama.cpp](https://github.com/ggml-org/llama.cpp) and programs built on it"
_WHOLE = {"F32", "F16", "BF16"}
_WHICH = (
    " KLD is how far a file's predictions are from the original's on that text: 0 means identical."
    " A file is left out if a smaller one is closer to the original."
)
_TABLE_KLD = (
    "KLD is the Kullback-Leibler divergence from the original model's predictions, over the whole"
    " vocabulary, on held-out text: 0 means identical. Intervals are over documents. Standard mixes"
    " are llama.cpp's types, in files within 0.3 % of the same size; differences are paired by"
    " document, p values adjusted (Holm) for all of this table."
)


@dataclass(frozen=True)
class Text:
    """A text that files were calibrated or scored on: its sources, each with its licence.

    `name` of the file that goes along; "" if it does not.
    """

    sources: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True)
class Release:
    """What a card says beside a manifest's entries, where it is known.

    Attributes
    ----------
    repo : on the Hub.
    shards : names of the parts of files that are split, by the file's name.
    calibration : texts by their sha256.
    heldout : texts by their labels in `scores`.
    """

    repo: str = ""
    scores: Scores = field(default_factory=Scores)
    shards: Mapping[str, Sequence[str]] = field(default_factory=dict)
    calibration: Mapping[str, Text] = field(default_factory=dict)
    heldout: Mapping[str, Text] = field(default_factory=dict)


def card(files: Entries, release: Release = Release()) -> str:
    """Return the card of a manifest's files."""
    quants = {n: _named(e) for n, e in sorted(files.items()) if e["kind"] == "quant"}
    names = ", ".join(sorted({readable(e["model_name"]) for e in quants.values()}))
    lines = [_front(quants, release), f"# GGUF files of {names}", ""]
    lines += _introduction(names, quants, release.scores)
    lines += _which(quants, release.scores)
    lines += _use(quants, release)
    lines += _files(quants, release)
    lines += _measured(quants, release)
    lines += _chosen(quants)
    lines += _quick(quants)
    every = {canonical_json(e["study"]): e["study"] for e in files.values() if e.get("study")}
    for _, study in sorted(every.items()):
        lines += studies.section(study, quants)
    lines += _imatrix(files, release)
    lines += _left_out(quants)
    lines += _made(quants, release)
    return "\n".join(lines)


def _named(e: dict[str, Any]) -> dict[str, Any]:
    """Return an entry whose language is one; earlier versions took a file's name for it."""
    if not e["language"] or is_language(e["language"]):
        return e
    return {**e, "language": "", "imatrix": e.get("imatrix") or e["language"]}


def _table(columns: Sequence[str], n_text: int, rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table; columns after the first `n_text` are numbers."""
    marks = ["---" if i < n_text else "---:" for i in range(len(columns))]
    cells = [[readable(c).replace("|", "\\|") for c in row] for row in (columns, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{'|'.join(marks)}|", *lines[1:]]


def _front(quants: Entries, release: Release) -> str:
    """Return the front matter, by the Hub's conventions."""
    from huggingface_hub import EvalResult, ModelCardData

    bases = sorted({e["base_model"] for e in quants.values() if e["base_model"]})
    # the Hub takes codes only; an imatrix over the user's own text may have none
    languages = sorted({x for e in quants.values() for x in languages_of(e["language"])})
    named = sorted({name for e in quants.values() if (name := _quantized_by(e))})
    licences = {
        (e["license"], e.get("license_name", ""), e.get("license_link", ""))
        for e in quants.values()
        if e["license"]
    }
    licence, name, link = licences.pop() if len(licences) == 1 else ("", "", "")
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=s.summary.text,
            dataset_name=f"held-out text: {s.summary.text}",
            metric_type=kind,
            metric_name=f"{words}, {s.file}",
            metric_value=round(value.estimate, 6),
        )
        for s in release.scores.files
        for kind, words, value in (
            ("kl_divergence", "KLD from the original, nats a token", s.summary.kld_mean),
            ("same_top_token", "same top token as the original", s.summary.same_top),
        )
    ]
    has_imatrix = any(e["imatrix_sha256"] or e.get("imatrix") for e in quants.values())
    data = ModelCardData(
        base_model=bases[0] if len(bases) == 1 else bases or None,
        language=languages or None,
        license=licence or None,
        license_name=name or None,
        license_link=link or None,
        library_name="gguf",
        pipeline_tag="text-generation",
        tags=["gguf", *["imatrix"] * has_imatrix, "llama.cpp", *languages],
        model_name=", ".join(sorted({e["model_name"] for e in quants.values()})),
        eval_results=results or None,
        base_model_relation="quantized" if bases else None,
        quantized_by=", ".join(named) or release.repo.partition("/")[0] or None,
    )
    if not results:
        data.model_name = None
    return f"---\n{data.to_yaml()}\n---\n"


def _quantized_by(e: Mapping[str, Any]) -> str:
    return str(e.get("request", {}).get("quantized_by", ""))


def _introduction(names: str, quants: Entries, scores: Scores) -> list[str]:
    """Return what it is, for whom, and what is known of it: a line each."""
    tuned = dict.fromkeys(e["language"] for e in quants.values() if e["language"])
    imatrix = "without an importance matrix"
    if tuned:
        imatrix = f"with an importance matrix from text in {_and(map(_language, tuned))}"
    elif any(e.get("imatrix") for e in quants.values()):
        imatrix = "with an importance matrix"
    types = {e["type"].removeprefix("mostly ") for e in quants.values()}
    made = f"not quantized ({_and(sorted(types))})" if types <= _WHOLE else f"quantized {imatrix}"
    lines = [f"{names} for {_PROGRAMS}, {made}.", ""]
    if tuned:
        lines += [
            f"For people who use this model in {_and(map(_language, tuned))}: other languages may"
            " lose more than with a file that was made for them.",
            "",
        ]
    if any(e.get("quick") for e in quants.values()) and not scores.files:
        return [*lines, "Compared on a few documents: see below."]
    if not scores.files:
        return [*lines, "How far the files are from the original has not been scored."]
    texts = sorted(scores.texts(), key=lambda text: text not in tuned)
    known = f"Scored against the original on held-out text ({_and(texts)}): every result is below."
    if claims := [c for text in texts if (c := _claim(text, scores))]:
        known += f" Beside llama.cpp's standard mixes of the same size: {'; '.join(claims)}."
    return [*lines, known]


def _claim(text: str, scores: Scores) -> str:
    """Return how often files are better or worse than standard mixes on a text."""
    verdicts = [a.verdict for s in scores.files if s.summary.text == text for a in s.others]
    counts = {v: verdicts.count(v) for v in ("better", "worse", "undecided") if v in verdicts}
    told = ", ".join(f"{verdict} in {n}" for verdict, n in counts.items())
    return f"on {text} {told} of {len(verdicts)}" if counts else ""


def _which(quants: Entries, scores: Scores) -> list[str]:
    """Return which file to take for which memory: none that a smaller one is better than."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for name, e in sorted(quants.items(), key=lambda item: item[1].get("memory_bytes", 0)):
        if e.get("memory_bytes") and e["type"] not in NOT_FOR_USE:
            groups.setdefault(e["language"], {})[name] = e
    if not groups:
        return []
    rows = []
    for language, files in groups.items():
        text, kld = _main_klds(language, files, scores)
        best = math.inf
        for name, e in files.items():
            if not kld or kld[name].estimate < best:
                memory = f"{math.ceil(4 * e['memory_bytes'] / 2**30) / 4:g} GiB"
                rows.append([memory, name, text, _number(kld[name]) if kld else ""])
                best = kld[name].estimate if kld else best
    n_columns = 4 if scores.files else 2
    columns = ["free memory", "file", "text", "KLD, nats a token"][:n_columns]
    return [
        "",
        "## Which file",
        "",
        *_table(columns, 3, [row[:n_columns] for row in rows]),
        "",
        f"Memory is at most about: the file, a context of {CONTEXT:,} tokens, and buffers."
        + (_WHICH if scores.files else " Larger files are as a rule closer to the original."),
    ]


def _main_klds(language: str, files: Entries, scores: Scores) -> tuple[str, dict[str, Interval]]:
    """Return the files' KLD on the text of their language, or else the first; {} if not all's."""
    for text in sorted(scores.texts(), key=lambda text: text != language):
        kld = {s.file: s.summary.kld_mean for s in scores.files if s.summary.text == text}
        if files.keys() <= kld.keys():
            return text, kld
    return "", {}


def _files(quants: Entries, release: Release) -> list[str]:
    columns = ["file", "type", "imatrix", "types by role", "size", "bits per weight"]
    rows = [
        [
            _parts(release.shards.get(name, [name])),
            e["type"].removeprefix(size_types.PREFIX),
            _calibration(e),
            _by_role(e.get("types_by_role", {})),
            format.size(e["size_bytes"]),
            f"{e['bits_per_weight']:.2f}",
        ]
        for name, e in quants.items()
    ]
    lines = ["", "## Files", "", *_table(columns, 4, rows)]
    for name, shards in release.shards.items():
        lines += ["", f"{name} is split into {len(shards)} parts; programs load it by the first."]
    for name, e in quants.items():
        if fallback := e.get("fallback"):
            n = f"{len(fallback)} of {e['n_tensors']}"
            what = "tensors have another type than asked for: their rows do not fit it."
            lines += ["", f"{name}: {n} {what}"]
        if e.get("scaled"):
            lines += ["", f"{name}: {e['scaled']}."]
        if e.get("forced"):
            lines += ["", f"{name} was made with an imatrix that failed its check: {e['forced']}."]
    notes = sorted({e["note"] for e in quants.values() if e.get("note")})
    return [*lines, *(line for note in notes for line in ("", note))]


def _parts(names: Sequence[str]) -> str:
    """Return the name of a file, or of its first part and how many there are."""
    return names[0] + f" and {len(names) - 1} more parts" * (len(names) > 1)


def _calibration(e: Mapping[str, Any]) -> str:
    """Return the language of a quant's imatrix; that of another's file only if it records one."""
    if e["language"] or not (name := e.get("imatrix")):
        return e["language"] or "none"
    return f"not recorded ({name})"


def _by_role(roles: Mapping[str, Mapping[str, int]]) -> str:
    """Return types with the roles that have them, roles alike together."""
    alike: dict[str, list[str]] = {}
    for role, types in roles.items():
        named = _counted(types) if len(types) > 1 else next(iter(types))
        alike.setdefault(named, []).append(role)
    return "; ".join(f"{', '.join(names)}: {types}" for types, names in alike.items())


def _measured(quants: Entries, release: Release) -> list[str]:
    scores = release.scores
    if not scores.files:
        return []
    tuned = {e["language"] for e in quants.values()}

    def place(s: Scored) -> tuple[Any, ...]:
        return s.summary.text not in tuned, s.summary.text, s.size_bytes, s.file

    columns = ["file", "text", "standard mix", "verdict", "KLD, nats a token", "95 % CI"]
    columns += ["same top token", "difference from the mix", "95 % CI", "p, adjusted"]
    rows = [
        row
        for s in sorted(scores.files, key=place)
        for row in map(lambda a, s=s: _row(s, a), s.others or (None,))
    ]
    lines = ["", "## Measured", "", f"![KLD against size]({picture.NAME})", ""]
    lines += [*_table(columns, 4, rows), "", _TABLE_KLD, ""]
    if not any(s.others for s in scores.files):
        lines += ["No standard mix of the same size was scored.", ""]
    return [*lines, *dict.fromkeys(f"- {_text(s, release)}" for s in scores.files)]


def _row(s: Scored, other: Against | None) -> list[str]:
    kld, top = s.summary.kld_mean, s.summary.same_top
    cells = [s.file, s.summary.text, other.name if other else "", other.verdict if other else ""]
    cells += [_number(kld), format.interval(kld.low, kld.high) or format.UNKNOWN]
    estimate, low, high = (100 * x for x in (top.estimate, top.low, top.high))
    cells.append(f"{format.number(estimate, low, high)} % ({format.interval(low, high)})")
    if not other:
        return [*cells, "", "", ""]
    difference = format.number(other.estimate, other.low, other.high, plus=True)
    interval = format.interval(other.low, other.high, plus=True) or format.UNKNOWN
    return [*cells, difference, interval, format.probability(other.p_adjusted)]


def _number(value: Interval) -> str:
    return format.number(value.estimate, value.low, value.high)


def _text(s: Scored, release: Release) -> str:
    """Return what text was scored, and with what."""
    signature, summary = s.summary.signature, s.summary
    protocol = signature["protocol"]
    words = (
        f"{summary.text}: {summary.n_tokens:,} tokens in {summary.n_documents} documents,"
        f" windows of {protocol['n_ctx']} tokens (protocol {protocol['name']}, divergence"
        f" {summary.divergence}); {signature_words(signature)}"
    )
    if text := release.heldout.get(summary.text):
        words += f"; from {'; '.join(text.sources)}" + (f"; here as {text.name}" * bool(text.name))
    return words


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
    signatures = sorted({signature_words(answer["signature"]) for answer in answers.values()})
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


def _imatrix(files: Entries, release: Release) -> list[str]:
    """Return what the importance matrices were made of, with licences."""
    lines = list[str]()
    for provenance in sorted({e["provenance"] for e in files.values() if e.get("provenance")}):
        lines.append(f"- {provenance}")
    for sha256, text in release.calibration.items():
        lines += [f"- {source}" for source in text.sources]
        where = f"is {text.name}" if text.name else "itself is not here"
        lines += ["", f"The text {where} (sha256 {sha256[:12]})."]
    imatrices = {e["imatrix_sha256"]: n for n, e in files.items() if e["kind"] == "imatrix"}
    if imatrices:
        named = ", ".join(f"{n} (sha256 {x[:12]})" for x, n in imatrices.items())
        lines += ["", f"Here as {named}."]
    return ["", "## What the imatrix was made of", "", *lines] if lines else []


def _left_out(quants: Entries) -> list[str]:
    templates = {e.get("chat_template_sha256") for e in quants.values()}
    lines = []
    made_here = all("left_out" in e for e in quants.values())
    if templates == {""}:
        has_none = ": the original has none, and continues text" * made_here
        lines.append(f"- no chat template{has_none}")
    for sha256 in sorted(filter(None, templates)):
        unchanged = ", the original's, unchanged" * made_here
        lines.append(f"- chat template: sha256 {sha256}{unchanged}")
    parts = dict.fromkeys(p for e in quants.values() for p in e.get("left_out", ()))
    if parts:
        lines.append(f"- left out of the original: {_and(parts)}")
    elif made_here:
        lines.append(
            "- left out: nothing of the file that these were made from; towers for pictures or"
            " sound (mmproj), if the model has any, are files of their own and not here"
        )
    return ["", "## Chat template, and what was left out", "", *lines]


def _use(quants: Entries, release: Release) -> list[str]:
    name = min(quants, key=lambda name: quants[name]["size_bytes"])
    first = release.shards.get(name, [name])[0]
    where = f"--hf-repo {release.repo} --hf-file {first}" if release.repo else f"-m {first}"
    lines = ["", "## To run a file", "", f"    llama-server {where}"]
    if release.repo and name not in release.shards:  # ollama takes no parts
        lines.append(f"    ollama run hf.co/{release.repo}:{name}")
    return lines


def _made(quants: Entries, release: Release) -> list[str]:
    commands = sorted({e["command"] for e in quants.values() if e["command"]})
    commands += _score_commands(quants, release)
    lines = list[str]()
    if commands:
        lines += ["", "## To repeat it", "", "With imatrix_lab (`make` in its folder):", ""]
        lines += [f"    {command}" for command in commands]
    if known := sorted({_perplexity(e) for e in quants.values() if e.get("perplexity")}):
        columns = ["file", "perplexity", "of the original"]
        rows = [
            [n, *(f"{e[key]:.4f}" for key in ("perplexity", "perplexity_reference"))]
            for n, e in quants.items()
            if e.get("perplexity")
        ]
        words = "A smoke test of each file, not a benchmark, by llama-perplexity:"
        lines += ["", words, "", *_table(columns, 1, rows), "", *known]
    return [*lines, ""]


def _score_commands(quants: Entries, release: Release) -> list[str]:
    """Return the commands that repeat what was scored, one for each protocol and length."""
    groups: dict[str, list[Scored]] = {}
    for s in (*release.scores.files, *release.scores.standards):
        signature = s.summary.signature
        protocol = signature["protocol"]
        flags = f"--limit {signature['text']['n_documents']} --ctx {protocol['n_ctx']}"
        if n := signature["text"].get("document_tokens"):
            flags += f" --document-tokens {n}"
        flags += f" --protocol {protocol['name']}" * (protocol["name"] != "document")
        groups.setdefault(flags, []).append(s)
    origins = sorted({e["model"] for e in quants.values() if e.get("model")})
    reference = origins[0] if len(origins) == 1 else "ORIGINAL"
    return [
        f"imatrix-lab score run --reference {reference}"
        f" --quant {' '.join(dict.fromkeys(map(_file, group)))}"
        f" --text {' '.join(dict.fromkeys(_text_option(s, release) for s in group))} {flags}"
        for flags, group in groups.items()
    ]


def _file(s: Scored) -> str:
    return s.file if s.file.endswith(".gguf") else f"{s.summary.quant}.gguf"


def _text_option(s: Scored, release: Release) -> str:
    text = release.heldout.get(s.summary.text)
    return f"{s.summary.text}={text.name}" if text and text.name else s.summary.text


def _perplexity(e: Mapping[str, Any]) -> str:
    """Return what text a quant's perplexity is of, as far as it is recorded."""
    windows = f"the first {e['n_windows']} windows" if e.get("n_windows") else "some windows"
    line = f"- perplexity over {windows} of "
    if not (text := e.get("heldout")):
        return f"{line}a text that is not recorded"
    line += f"{text} (sha256 {e['heldout_sha256'][:12]})"
    is_same = e.get("heldout_is_calibration", False if e["corpus_sha256"] else None)
    if is_same:
        line += ", from which the imatrix was computed: it tells little of other text"
    elif e["imatrix_sha256"] and is_same is None:
        line += "; whether the imatrix was computed from the same text is not recorded"
    return line


def _language(label: str) -> str:
    language = load_all().get(label)
    return language.name if language else label


def _and(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
