"""Where the numbers come from: controls, power, methods, files, commands, signatures, licences."""

import json
import math
from collections.abc import Sequence

from imatrix_lab.core import config, format
from imatrix_lab.report import cells, text
from imatrix_lab.report.blocks import Block, Code, Section, Statements, Table
from imatrix_lab.report.cells import Cell, row
from imatrix_lab.report.lookup import View

WHY_CHARS = 2000


def controls(view: View) -> Section | None:
    """Return the comparisons with a known outcome."""
    columns = ("control", "expected", "on", "type", "metric", "measured", "low", "high", "× noise")
    blocks = []
    for caption, folded in (("Controls", False), ("Controls in other metrics", True)):
        rows = [
            row(
                view.of_model(c.model) + c.name, c.expected,
                f"{c.task} {view.text(c.text)}".strip(), c.type, f"{c.metric}, {c.unit}",
                *cells.interval(c, plus=True), cells.multiple(c.noise_multiple),
            )
            for c in view.results.controls if view.decides(c.task, c.metric) != folded
        ]  # fmt: skip
        blocks += [Table(caption, columns, rows, folded)] if rows else []
    words = (
        "Comparisons with a known outcome. If one of these comes out otherwise, do not trust the"
        " rest of this page."
    )
    return Section("controls", "Controls", [words], blocks) if blocks else None


def power(view: View) -> Section | None:
    """Return the minimum detectable difference of each comparison."""
    rows = []
    for p in view.results.power:
        enough = "yes" if p.detectable <= p.margin else "no: it may be missed"
        if not math.isfinite(p.margin):
            enough = "no margin declared"
        numbers = (cells.number(p.detectable), cells.number(p.margin))
        rows.append(row(p.what, *numbers, p.unit, enough, p.assumed))
    columns = ("comparison", "min. detectable", "margin", "unit", "detects the margin", "assumed")
    words = (
        "Computed before the data were seen: the smallest true difference that is detected with"
        " 80 % power. “Undecided” says little about anything smaller."
    )
    table = Table("Minimum detectable differences", columns, rows)
    return Section("power", "Statistical power", [words], [table]) if rows else None


_METHODS = (
    "Importance matrices are collected with, and quants made by, one pinned llama.cpp. A mixture’s"
    " imatrix is merged from its languages’ imatrices, without another run of the model."
    " Held-out text shares no document with the calibration text.",
    "Texts: the original and the quant read the same tokens. KLD is the Kullback–Leibler"
    " divergence of the quant’s next-token distribution from the original’s over the whole"
    " vocabulary, in nats a token; loss is the negative log likelihood, perplexity its"
    " exponential.",
    "Differences are paired: token by token or item by item, so that what both share cancels."
    " Clusters are documents, or groups of items with the same context: p values and intervals"
    " come from flipping the signs of whole clusters (all flips up to 13 clusters, then a"
    " saddlepoint approximation), standard errors from the jackknife over clusters (CR3).",
    "Where a calibration has several samples, the sample is a random effect beside the"
    " documents: both variances add, and t has Satterthwaite’s degrees of freedom.",
    "Verdicts: better or worse if p, adjusted for its family, is at most 0.05; equivalent if"
    " two one-sided tests at 2.5 % each put the difference inside the margin that was declared"
    " beforehand; else undecided. Undecided does not mean equal.",
)


def methods(view: View) -> Section:
    """Return in words how the numbers were computed."""
    results = view.results
    every = (*results.comparisons, *results.contrasts)
    families = {c.family: c.n_family for c in every if c.family}
    words = list(_METHODS)
    if adjusted := sorted({c.adjust for c in results.comparisons} - {"none", ""}):
        sizes = "; ".join(f"{name}: {n} comparisons" for name, n in families.items())
        words.append(f"Adjusted by {', '.join(adjusted)} within families ({sizes}).")
    if any(math.isfinite(c.noise) for c in results.comparisons):
        words.append(
            "Noise is the root mean square difference between quants whose imatrices come from"
            " disjoint samples of the calibrations compared. “Detectable” is for one comparison"
            " alone, before adjustment."
        )
    else:
        words.append(
            "Each language has one calibration sample: an effect of the language cannot be told"
            " from that of its one text."
        )
    if results.predictions:
        words.append(
            "Predicted loss: for each matrix, the squared error of quantizing weighted by the"
            " language’s mean squared activations, over the same sum of the weights themselves;"
            " mean over tensors."
        )
    words.append("Derivations and references are in docs/statistics.md of imatrix_lab.")
    notes = Statements("Notes", [(note, "") for note in results.notes])
    return Section("methods", "Methods", words, [notes] if notes.pairs else [])


def files(view: View) -> Section | None:
    """Return the models, calibration texts and quants."""
    results = view.results
    facts = [
        Table(f"Model {label}", ("fact", "value"), [row(*x) for x in text.flat(model).items()])
        for label, model in results.models.items()
    ]
    calibrations = [
        row(
            view.of_model(c.model) + c.label, c.kind, Cell(str(c.sample), c.sample),
            ", ".join(f"{code} {100 * share:.0f} %" for code, share in c.shares.items()),
            cells.count(c.n_tokens), c.source, c.licence,
            _sha(c.imatrix_sha256), _sha(c.corpus_sha256), _sha(*c.merged_from),
        )
        for c in results.calibrations
    ]  # fmt: skip
    quants = [
        row(
            view.of_model(q.model) + q.label, q.calibration, Cell(str(q.sample), q.sample), q.type,
            Cell(format.size(q.size_bytes), q.size_bytes),
            Cell(f"{q.bits_per_weight:.2f}", q.bits_per_weight),
            Cell(str(q.n_fallback), q.n_fallback), _sha(q.sha256),
        )
        for q in results.quants
    ]  # fmt: skip
    columns = ["calibration", "kind", "sample", "shares", "tokens", "source", "licence"]
    columns += ["imatrix sha256", "text sha256", "merged from"]
    quant_columns = ["file", "calibration", "sample", "type", "size", "bits per weight"]
    quant_columns += ["fallback tensors", "sha256"]
    tables = [
        *facts,
        Table("Calibrations", columns, calibrations, folded=True),
        Table("Quantized files", quant_columns, quants, folded=True),
    ]
    blocks = [table for table in tables if table.rows]
    words = "Hashes are shortened here and whole in results.json."
    return Section("made", "Models, texts and files", [words], blocks) if blocks else None


def _sha(*digests: str) -> Cell:
    return Cell(" ".join(digest[:12] for digest in digests), mark="sha")


def commands(view: View) -> Section:
    """Return the commands, the recipe and the time it took."""
    results = view.results
    recipe = json.dumps(config.plain(results.recipe), ensure_ascii=False, indent=2)
    blocks: list[Block] = [Code("Commands", "\n".join(results.commands))]
    blocks = [*(blocks if results.commands else []), Code("Recipe with all defaults", recipe, True)]
    if results.times.steps_s:
        steps = sorted(results.times.steps_s.items(), key=lambda step: (-step[1], step[0]))
        rows = [row(name, Cell(format.duration(t), t)) for name, t in steps]
        title = f"Time: {format.duration(results.times.total_s)} in all"
        blocks.append(Table(title, ("step", "time"), rows, folded=True))
    words = "These commands, in this order, repeat the study."
    return Section("repeat", "Repeat it", [words], blocks)


def signatures(view: View) -> Section | None:
    """Return what every number was measured with: first what all share, then what differs."""
    names = {name: key for key, name in view.signature_names.items()}  # S1, S2 … in order
    flat = {name: text.flat(view.results.signatures[key]) for name, key in names.items()}
    fields = sorted({field for signature in flat.values() for field in signature})
    values = {f: [signature.get(f) for signature in flat.values()] for f in fields}
    shared = [f for f in fields if len(set(values[f])) == 1]
    rest = [f for f in fields if f not in shared]
    hashes = {f: [Cell(value or "", mark="sha") for value in values[f]] for f in fields}
    shared_rows = [row(f, hashes[f][0]) for f in shared]
    rest_rows = [row(name, *(hashes[f][i] for f in rest)) for i, name in enumerate(flat)]
    tables = [
        Table("Shared by all", ("field", "value"), shared_rows),
        Table("What differs", ["signature", *rest], rest_rows, folded=True, look="signatures"),
    ]
    words = (
        "S1, S2 … in the tables lead here: with which models, files, text, protocol and programs a"
        " number was measured."
    )
    blocks = [table for table in tables if table.rows]
    return Section("signatures", "Signatures", [words], blocks) if flat else None


def licences(view: View) -> Section | None:
    """Return the licences of texts and models."""
    rows = [row(x.what, x.licence, x.source) for x in view.results.licences]
    table = Table("Texts and models", ("what", "licence", "source"), rows)
    return Section("licences", "Licences", [], [table]) if rows else None


def missing(view: View, absent: Sequence[str]) -> Section | None:
    """Return the failed steps, unknown details of a paper, and the parts that are absent."""
    results = view.results
    columns = ("step", "error", "fix", "skipped because of it")
    rows = [
        row(m.step, text.cut(m.why, WHY_CHARS), m.fix, format.some(m.left_out))
        for m in results.missing
    ]
    blocks: list[Block] = [Table("Failed steps", columns, rows)] if rows else []
    if details := [(detail, "") for detail in results.unknown]:
        blocks.append(Statements("Details that the paper does not give", details))
    words = [f"Not part of this study: {', '.join(absent)}."] if absent else []
    if results.reduced:
        words.append("The recipe ran in its reduced form, on the demo model.")
    return Section("missing", "Missing", words, blocks) if words or blocks else None
