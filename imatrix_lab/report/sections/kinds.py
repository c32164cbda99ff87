"""Types chosen for a size, and other quantizers, beside llama.cpp's own mixes."""

import itertools
import math
from collections.abc import Iterator, Sequence

from imatrix_lab.core import format
from imatrix_lab.report import cells
from imatrix_lab.report.blocks import (
    Block,
    Chart,
    Forest,
    ForestRow,
    Picture,
    Point,
    Run,
    Section,
    Series,
    Statements,
    Strips,
    Table,
)
from imatrix_lab.report.cells import Cell, row
from imatrix_lab.report.lookup import Measure, View
from imatrix_lab.report.results import Agreement, Contrast, TensorTypes, TypeInteraction
from imatrix_lab.report.sections.measured import ENDS, NUMBERS, by_text
from imatrix_lab.report.sections.verdicts import NOT_MEASURED, all_of, span
from imatrix_lab.stats.comparison import ALPHA
from imatrix_lab.stats.metrics import METRICS

STANDARD = "llama.cpp’s mixes"


def contrasts(view: View) -> Section | None:
    """Return types chosen for a size, and quantizers, beside plain types of the same size."""
    shown, blocks = view.results.contrasts, list[Block]()
    for measure in view.measures(shown):
        key = (measure.model, measure.task, measure.metric)
        same = [c for c in shown if (c.model, c.task, c.metric) == key]
        pairs = dict.fromkeys((c.a, c.b) for c in same)
        groups = [[*_forests(view, measure, same, *pair)] for pair in pairs]
        table = all_of(view, measure, same)
        words = "Paired differences between types with one calibration, with 95 % CI and margin"
        folded = not view.decides(measure.task, measure.metric)
        blocks.append(Picture(view.title(measure), words, groups, table, folded=folded))
    sentences = [(c.plain, c.formal) for c in shown if view.decides(c.task, c.metric)]
    blocks += [Statements("Every contrast in words", sentences, folded=True)] if sentences else []
    if view.results.refused:
        rows = [row(gap) for gap in view.results.refused]
        blocks.append(Table("Not compared, since their sizes differ", ["files"], rows, folded=True))
    words = (
        "Files of one size (within 0.3 %) with the same calibration: types of tensors that were"
        " chosen for the calibration’s language (size:…) beside the standard type, and other"
        " quantizers (…+feedback) beside llama-quantize with the same imatrix. Rows are"
        " calibrations; bold: that of the text’s own language."
    )
    title = "Other types and quantizers at one size"
    return Section("kinds", title, [words], blocks) if blocks else None


def _forests(
    view: View, measure: Measure, contrasts: Sequence[Contrast], a: str, b: str
) -> Iterator[Forest]:
    same = [c for c in contrasts if (c.a, c.b) == (a, b)]
    labels = view.ordered(c.calibration for c in same)
    by_place = {(c.text, c.calibration): c for c in same}
    for text in dict.fromkeys(c.text for c in same):
        rows = []
        for label in labels:
            c = by_place.get((text, label))
            values = (c.estimate, c.low, c.high, c.verdict, c.noise) if c else NOT_MEASURED
            rows.append(ForestRow(label, *values, view.is_own(measure.model, label, text)))
        title = (f"{a} · {view.text(text)}", f"{measure.unit}, minus {b}")
        yield Forest(*title, rows, same[0].margin, span(same), same[0].lower_is_better)


def interactions(view: View) -> Section | None:
    """Return for which types and quantizers the calibration matters."""
    blocks, shown = list[Block](), view.results.type_interactions
    scales = dict.fromkeys((x.model, x.task, x.metric, x.unit) for x in shown)
    for model, task, metric, unit in sorted(scales, key=lambda s: not view.decides(s[1], s[2])):
        same = [x for x in shown if (x.model, x.task, x.metric) == (model, task, metric)]
        means = [x for x in same if not x.text]
        forests = [
            _forest("More than " + b if b else "Each alone", [x for x in means if x.type_b == b])
            for b in dict.fromkeys(x.type_b for x in means)
        ]
        words = "What the text’s own calibration changes, by type, with 95 % CI and noise"
        title = f"{view.of_model(model)}{task} {METRICS[metric].words}, {unit}"
        folded = not view.decides(task, metric)
        table = _numbers(view, same)
        drawn = Picture(title.strip(), words, [forests], table, folded=folded) if forests else table
        blocks.append(drawn)
    sentences = [(x.plain, x.formal) for x in shown if view.decides(x.task, x.metric)]
    blocks.append(Statements("Every one in words", sentences, folded=True))
    reference = shown[0].reference if shown else ""
    words = (
        f"First, for each type and quantizer alone: calibration on the text’s own language less"
        f" calibration on {reference}, the mean over the texts. A mark outside the grey band is"
        " more than two samples of one language differ by. Then the interaction: by how much more"
        " that changes the type of a row than the one in the title, both made with the same"
        " imatrices and of the same size. Towards “better”, the language matters more for the row."
    )
    title = "For which quantizer does the calibration matter?"
    return Section("calibration-by-kind", title, [words], blocks) if shown else None


def _forest(caption: str, rows: Sequence[TypeInteraction]) -> Forest:
    lower = METRICS[rows[0].metric].lower_is_better
    values = [v for x in rows for v in (x.estimate, x.low, x.high) if math.isfinite(v)]
    ends = (min([0.0, *values]), max([0.0, *values]))
    room = 0.06 * (ends[1] - ends[0]) or 1.0
    forest_rows = [
        ForestRow(x.type_a, x.estimate, x.low, x.high, _verdict(x, lower), x.noise, False)
        for x in rows
    ]
    x_range = (ends[0] - room, ends[1] + room)
    return Forest(caption, rows[0].unit, forest_rows, math.nan, x_range, lower)


def _verdict(x: TypeInteraction, lower_is_better: bool) -> str:
    if not x.p_holm <= ALPHA:
        return "undecided"
    return "better" if (x.estimate < 0) == lower_is_better else "worse"


def _numbers(view: View, shown: Sequence[TypeInteraction]) -> Table:
    columns = ["A", "B", "on", "calibration", "minus", "estimate", "low", "high", "noise", "p"]
    rows = [
        row(
            x.type_a, x.type_b, view.text(x.text) if x.text else f"mean of {x.n_texts}",
            x.calibration or "own language", x.reference, *cells.interval(x, plus=True),
            cells.number(x.noise, x.low, x.high), *map(cells.p_value, (x.p_value, x.p_holm)),
        )
        for x in shown
    ]  # fmt: skip
    return Table(NUMBERS, [*columns, "p (Holm)"], rows, folded=True)


def frontier(view: View) -> Section | None:
    """Return the divergence by size of the text's own calibration: standard mixes, and others."""
    panels, rows = [], []
    scored, axis = by_text(view)
    methods = dict.fromkeys(view.method(t) for t in view.results.types)
    numbers = {method: i for i, method in enumerate(sorted(methods, key=bool))}
    for (model, text), scores in scored.items():
        label = text if any(s.calibration == text for s in scores) else view.results.baseline
        points: dict[str, list[Point]] = {method: [] for method in numbers}
        for s in scores:
            quant = view.quants.get((model, label, s.type))
            if s.calibration != label or quant is None:
                continue
            bits = quant.bits_per_weight
            points[view.method(s.type)].append(Point(bits, s.estimate, s.low, s.high))
            size = Cell(format.size(quant.size_bytes), quant.size_bytes)
            values = (*cells.interval(s), view.signed(s.signatures))
            title = view.of_model(model) + view.text(text)
            rows.append(row(title, label, s.type, size, Cell(f"{bits:.2f}", bits), *values))
        series = [
            Series(m or STANDARD, numbers[m], sorted(p, key=lambda p: p.x), joined=not m)
            for m, p in points.items() if p
        ]  # fmt: skip
        if len(series) > 1:
            caption = f"{view.of_model(model)}{view.text(text)} · calibration {label}"
            panels.append(Chart(caption, "bits per weight", axis, series, log_y=True))
    words = (
        "Divergence from the original by size, with 95 % CI, each text with the calibration on its"
        " own language where there is one. The line joins llama.cpp’s own mixes: what lies below it"
        " is better than any of them at that size."
    )
    columns = ("text", "calibration", "type", "size", "bits per weight", axis, *ENDS)
    legend = [(i, m or STANDARD) for m, i in numbers.items()]
    picture = Picture("", words, [panels], Table(NUMBERS, columns, rows, True), legend)
    return Section("frontier", "Below the standard mixes?", [words], [picture]) if panels else None


def tensor_types(view: View) -> Section | None:
    """Return the types of tensors by role and depth."""
    shown = view.results.tensor_types
    chosen = [t for t in shown if view.method(t.type)]
    bits = {name: n for t in shown for name, n in t.bits.items()}
    groups, rows = [], []
    for quant_type in dict.fromkeys(t.type for t in chosen):
        files = [t for t in chosen if t.type == quant_type]
        standard = [t for t in shown if f"size:{t.type}" == quant_type]
        files = [*standard[:1], *files]
        groups.append([_strips(view, t, bits) for t in files])
        rows += [
            row(view.of_model(t.model) + t.type, t.calibration, role, _in_words(types))
            for t in files for role, types in t.roles.items()
        ]  # fmt: skip
    words = (
        "The type of each tensor, by role from top to bottom and layer from left to right: darker"
        " is more bits. Where there is no room for a type’s name, its bits stand alone. First the"
        " standard type of that size, if the study has it; of several samples the first."
    )
    table = Table("The same in words", ("type", "calibration", "tensors", "types"), rows, True)
    picture = Picture("", words, groups, table)
    title = "Types of tensors"
    return Section("tensor-types", title, [words], [picture]) if chosen else None


def _strips(view: View, types: TensorTypes, bits: dict[str, float]) -> Strips:
    least, most = min(bits.values()), max(bits.values())
    n = max(len(row) for row in types.roles.values())
    rows = []
    for role, by_layer in sorted(types.roles.items(), key=lambda item: len(item[1]) > 1):
        last = n - 1 if len(by_layer) == 1 else 0
        runs = [
            Run(first, max(end, last), name, (bits[name] - least) / ((most - least) or 1.0))
            for first, end, name in _runs(by_layer)
        ]
        rows.append((role, runs))
    caption = f"{view.of_model(types.model)}{types.type} · {types.calibration}"
    return Strips(caption, "layer", rows, n)


def _runs(types: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield first and last layer of alike neighbours, and their type; not of none."""
    for name, members in itertools.groupby(enumerate(types), key=lambda item: item[1]):
        layers = [layer for layer, _ in members]
        if name:
            yield layers[0], layers[-1], name


def _in_words(types: Sequence[str]) -> str:
    if len(types) == 1:
        return types[0]
    runs = ((f"{a}–{b}" if b > a else f"{a}", name) for a, b, name in _runs(types))
    return ", ".join(f"{name} {layers}" for layers, name in runs)


def predicted(view: View) -> Section | None:
    """Return predicted divergences against those measured."""
    known = [
        p for p in view.results.predictions
        if math.isfinite(p.predicted_kld_nats + p.measured_kld_nats)
    ]  # fmt: skip
    agreements = {(a.model, a.language): a for a in view.results.agreements if not a.type}
    panels, rows = [], []
    for place in dict.fromkeys((p.model, p.language) for p in known):
        model, language = place
        points: dict[str, list[Point]] = {}
        for p in (p for p in known if (p.model, p.language) == place):
            point = Point(p.predicted_kld_nats, p.measured_kld_nats)
            points.setdefault(p.calibration, []).append(point)
            klds = map(cells.number, (p.predicted_kld_nats, p.measured_kld_nats))
            name = view.of_model(model) + view.text(language)
            rows.append(row(name, p.calibration, cells.count(p.sample), p.type, *klds))
        series = [Series(a, view.number(a), points[a], joined=False) for a in view.ordered(points)]
        caption = (
            f"{view.of_model(model)}{view.text(language)}{_correlation(agreements.get(place))}"
        )
        axes = ("predicted KLD, nats a token", "measured KLD, nats a token")
        panels.append(Chart(caption, *axes, series, log_y=True, log_x=True, has_diagonal=True))
    words = (
        "The divergence that the types of a file’s tensors predict, by each language’s"
        " sensitivities and the tensors’ errors, without running the file, against what it is. On"
        " the dashed line both are equal; ρ is Spearman’s rank correlation over all files."
    )
    columns = ("language", "calibration", "sample", "type", "predicted KLD, nats", "measured KLD")
    legend = [(view.number(a), a) for a in view.ordered(p.calibration for p in known)]
    picture = Picture("", words, [panels], Table(NUMBERS, columns, rows, True), legend)
    title = "Predicted divergence"
    return Section("predicted-kld", title, [words], [picture]) if known else None


def _correlation(agreement: Agreement | None) -> str:
    if agreement is None or not math.isfinite(agreement.spearman):
        return ""
    return f" · ρ = {agreement.spearman:.2f} (n = {agreement.n})".replace("-", "−")
