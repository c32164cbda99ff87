"""What the numbers stand on: controls, power, methods, files, commands, signatures, terms."""

import json
import math
from collections.abc import Sequence

from imatrix_lab.core import config, format
from imatrix_lab.report import text
from imatrix_lab.report.blocks import Block, Cell, Code, Sayings, Section, Table
from imatrix_lab.report.lookup import View
from imatrix_lab.report.results import Control

WHY_CHARS = 2000


def controls(view: View) -> Section | None:
    """Return the comparisons whose outcome is known beforehand."""
    found = view.found.controls
    first = [c for c in found if view.decides(c.task, c.metric)]
    rest = [c for c in found if not view.decides(c.task, c.metric)]
    blocks = [_controls(view, "Known answers", first, False)] if first else []
    blocks += [_controls(view, "Known answers in other metrics", rest, True)] if rest else []
    said = (
        "Comparisons with a known answer. If one of these comes out otherwise, trust nothing else"
        " on this page.",
    )
    return Section("controls", "Controls", said, tuple(blocks)) if blocks else None


def _controls(view: View, caption: str, found: Sequence[Control], folded: bool) -> Table:
    rows = tuple(
        (
            Cell(view.of_model(c.model) + c.name), Cell(c.expected),
            Cell(" ".join(w for w in (c.task, view.text(c.text)) if w)), Cell(c.type),
            Cell(f"{c.metric}, {c.unit}"),
            *(
                Cell(format.number(v, c.low, c.high, plus=True), v)
                for v in (c.estimate, c.low, c.high)
            ),
            Cell(f"{c.noise_multiple:.1f}" if math.isfinite(c.noise_multiple) else format.UNKNOWN,
                 c.noise_multiple),
        )
        for c in found
    )  # fmt: skip
    columns = ("control", "expected", "on", "type", "metric", "found", "low", "high", "× noise")
    return Table(caption, columns, rows, frozenset((5, 6, 7, 8)), folded)


def power(view: View) -> Section | None:
    """Return what each comparison could have found."""
    rows = tuple(
        (
            Cell(p.what), Cell(format.number(p.detectable), p.detectable),
            Cell(format.number(p.margin), p.margin), Cell(p.unit), _seen(p.detectable, p.margin),
            Cell(p.assumed),
        )
        for p in view.found.power
    )  # fmt: skip
    if not rows:
        return None
    columns = ("comparison", "detectable", "margin", "unit", "sees what matters", "assumed")
    said = (
        "Computed for the plan, before the data were seen: the smallest true difference that would"
        " be found with 80 % power. “Not found” says little about anything smaller.",
    )
    return Section(
        "power", "What could have been found", said,
        (Table("Minimum detectable differences", columns, rows, frozenset((1, 2))),),
    )  # fmt: skip


def _seen(detectable: float, margin: float) -> Cell:
    if not math.isfinite(margin):
        return Cell("no margin declared")
    return Cell("yes" if detectable <= margin else "no: it may be missed")


def methods(view: View) -> Section:
    """Return in words how the numbers came about."""
    found = view.found
    families = {c.family: c.n_family for c in found.comparisons if c.family}
    adjusted = sorted({c.adjust for c in found.comparisons} - {"none", ""})
    said = [
        "Quants are made with llama-imatrix and llama-quantize of one pinned llama.cpp. A mixture’s"
        " imatrix is merged from its languages’ imatrices, without another run of the model."
        " Held-out text shares no document with the calibration text.",
        "Texts: the original and the quant read the same tokens. KLD is the Kullback–Leibler"
        " divergence of the quant’s next-token distribution from the original’s over the whole"
        " vocabulary, in nats a token; loss is the negative log likelihood, perplexity its"
        " exponential.",
        "Differences are taken first, token by token or item by item, so that what both share"
        " cancels. The unit of uncertainty is the document, or the group of items with the same"
        " context: standard errors are jackknifed over these (CR3) with t quantiles; below 12 of"
        " them the sign flips of whole documents are enumerated.",
        "Where a calibration has several samples, the sample is a random effect beside the"
        " documents: both variances add, and t has Satterthwaite’s degrees of freedom.",
        "Verdicts: better or worse if p, adjusted for its family, is at most 0.05; equivalent if"
        " two one-sided tests at 2.5 % each put the difference inside the margin that was declared"
        " beforehand; else undecided. Undecided does not mean equal.",
    ]
    if adjusted:
        sizes = "; ".join(f"{name}: {n} comparisons" for name, n in families.items())
        said.append(f"Adjusted by {', '.join(adjusted)} within families ({sizes}).")
    noisy = any(math.isfinite(c.noise) for c in found.comparisons)
    said.append(
        "Noise is the root mean square of what quants differ by whose imatrices come from disjoint"
        " samples of the calibrations compared. Detectable is meant of a comparison alone, before"
        " adjustment."
        if noisy
        else "Each language has one calibration sample: an effect of the language cannot be told"
        " from that of its one text."
    )
    if found.predictions:
        said.append(
            "Predicted loss: for each matrix, the squared error of quantizing weighed by the"
            " language’s mean squared activations, over the same sum of the weights themselves;"
            " mean over tensors."
        )
    said.append("What this rests on is written up in docs/statistics.md of imatrix_lab.")
    return Section("methods", "Methods", tuple(said), _list("What to know besides", found.notes))


def _list(title: str, said: Sequence[str]) -> tuple[Sayings, ...]:
    return (Sayings(title, tuple((s, "") for s in said)),) if said else ()


def made(view: View) -> Section | None:
    """Return the models, calibration texts and quants."""
    found = view.found
    facts = [
        Table(
            f"Model {label}", ("fact", "value"),
            tuple((Cell(k), Cell(v)) for k, v in text.flat(model).items()),
        )
        for label, model in found.models.items()
    ]  # fmt: skip
    calibrations = tuple(
        (
            Cell(view.of_model(c.model) + c.label), Cell(c.kind), Cell(str(c.sample), c.sample),
            Cell(", ".join(f"{code} {100 * share:.0f} %" for code, share in c.shares.items())),
            Cell(format.count(c.n_tokens), c.n_tokens), Cell(c.source),
            Cell(c.licence), _sha(c.imatrix_sha256), _sha(c.corpus_sha256),
            Cell(" ".join(s[:12] for s in c.merged_from), mark="sha"),
        )
        for c in found.calibrations
    )  # fmt: skip
    quants = tuple(
        (
            Cell(view.of_model(q.model) + q.label), Cell(q.calibration),
            Cell(str(q.sample), q.sample), Cell(q.type),
            Cell(format.size(q.size_bytes), q.size_bytes),
            Cell(f"{q.bits_per_weight:.2f}", q.bits_per_weight),
            Cell(str(q.n_fallback), q.n_fallback), _sha(q.sha256),
        )
        for q in found.quants
    )  # fmt: skip
    tables = (
        Table("Calibrations", ("calibration", "kind", "sample", "shares", "tokens", "source",
              "licence", "imatrix sha256", "text sha256", "merged from"), calibrations,
              frozenset((2, 4)), folded=True),
        Table("Quantized files", ("file", "calibration", "sample", "type", "size",
              "bits per weight", "fallback tensors", "sha256"), quants,
              frozenset((2, 4, 5, 6)), folded=True),
    )  # fmt: skip
    blocks = (*facts, *(t for t in tables if t.rows))
    said = ("Hashes are shortened here and whole in results.json.",)
    return Section("made", "Models, texts and files", said, blocks) if blocks else None


def _sha(digest: str) -> Cell:
    return Cell(digest[:12], mark="sha")


def repeat(view: View) -> Section:
    """Return the commands, the recipe and the time it took."""
    found = view.found
    blocks: list[Block] = []
    if found.commands:
        blocks.append(Code("Commands", "\n".join(found.commands)))
    recipe = json.dumps(config.plain(found.recipe), ensure_ascii=False, indent=2)
    blocks.append(Code("Recipe, all defaults filled in", recipe, folded=True))
    steps = sorted(found.times.steps_s.items(), key=lambda step: (-step[1], step[0]))
    if steps:
        rows = tuple((Cell(name), Cell(format.duration(t), t)) for name, t in steps)
        title = f"Time: {format.duration(found.times.total_s)} in all"
        blocks.append(Table(title, ("step", "time"), rows, frozenset((1,)), folded=True))
    said = ("These commands, in this order, repeat the study.",)
    return Section("repeat", "Repeat it", said, tuple(blocks))


def signatures(view: View) -> Section | None:
    """Return what every number was measured with: first what all share, then what differs."""
    found = {view.signature_names[k]: text.flat(s) for k, s in view.found.signatures.items()}
    if not found:
        return None
    names = sorted(found, key=lambda name: int(name[1:]))
    fields = sorted({field for one in found.values() for field in one})
    shared = [f for f in fields if len({one.get(f) for one in found.values()}) == 1]
    rest = [f for f in fields if f not in shared]
    tables = [
        Table("Shared by all", ("field", "value"),
              tuple((Cell(f), Cell(found[names[0]][f], mark="sha")) for f in shared)),
        Table(
            "What differs", ("signature", *rest),
            tuple((Cell(n), *(Cell(found[n].get(f, ""), mark="sha") for f in rest)) for n in names),
            folded=True, look="signatures",
        ),
    ]  # fmt: skip
    said = (
        "A number without a signature is not a number. S1, S2 … in the tables lead here: with"
        " which models, files, text, protocol and programs a number was measured.",
    )
    return Section("signatures", "Signatures", said, tuple(t for t in tables if t.rows))


def licences(view: View) -> Section | None:
    """Return the terms of texts and models."""
    rows = tuple((Cell(x.what), Cell(x.licence), Cell(x.source)) for x in view.found.licences)
    table = Table("Texts and models", ("what", "licence", "source"), rows)
    return Section("licences", "Licences", (), (table,)) if rows else None


def missing(view: View, absent: Sequence[str]) -> Section | None:
    """Return what failed, what a paper does not tell, and which parts the study does not have."""
    found = view.found
    rows = tuple(
        (
            Cell(m.step), Cell(text.cut(m.why, WHY_CHARS)), Cell(m.fix),
            Cell(", ".join(m.left_out)),
        )
        for m in found.missing
    )  # fmt: skip
    blocks: list[Block] = []
    if rows:
        columns = ("step that failed", "why", "what mends it", "left out for it")
        blocks.append(Table("Steps that failed", columns, rows))
    blocks += _list("What the paper does not tell", found.unknown)
    said = [f"Not part of this study: {', '.join(absent)}."] if absent else []
    if found.reduced:
        said.append(
            "The recipe ran in its reduced form, on the demo model: smaller than what it describes."
        )
    if not (said or blocks):
        return None
    return Section("missing", "What is missing", tuple(said), tuple(blocks))
