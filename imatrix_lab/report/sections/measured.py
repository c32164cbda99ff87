"""Further measurements: size, mixtures, predictions, similarity of imatrices, all scores."""

import itertools
import math
from collections.abc import Sequence

from imatrix_lab.core import format
from imatrix_lab.report import cells
from imatrix_lab.report.blocks import Block, Chart, Picture, Point, Section, Series, Table
from imatrix_lab.report.cells import Cell, row
from imatrix_lab.report.lookup import View
from imatrix_lab.report.results import Score

KLD = "kld_nats"
HEAT_STEPS = 8
DODGE = 0.7
Steps = list[tuple[float, Score]]
NUMBERS = "The same in numbers"
ENDS = ("low", "high", "signature")


def size(view: View) -> Section | None:
    """Return the divergence by bits per weight, for each text."""
    panels, rows = [], []
    groups, axis = by_text(view)
    for (model, text), text_scores in groups.items():
        title = view.of_model(model) + view.text(text)
        series = []
        for label in view.ordered(s.calibration for s in text_scores):
            points = []
            for s in text_scores:
                quant = view.quants.get((model, label, s.type))
                if s.calibration != label or quant is None or view.method(s.type):
                    continue
                points.append(Point(quant.bits_per_weight, s.estimate, s.low, s.high))
                file_size = Cell(format.size(quant.size_bytes), quant.size_bytes)
                bits = Cell(f"{quant.bits_per_weight:.2f}", quant.bits_per_weight)
                numbers = (*cells.interval(s), view.signed(s.signatures))
                rows.append(row(title, label, s.type, file_size, bits, *numbers))
            points.sort(key=lambda p: p.x)
            series.append(Series(label, view.number(label), points))
        if any(s.points for s in series):
            panels.append(Chart(title, "bits per weight", axis, series, log_y=True))
    columns = ("text", "calibration", "type", "size", "bits per weight", axis, *ENDS)
    words = (
        "Divergence from the original by size, with 95 % CI; down and to the left is better. Bits"
        " per weight are over all tensors, fallback included."
    )
    legend = [(view.number(label), label) for label in view.labels]
    picture = Picture("", words, [panels], Table(NUMBERS, columns, rows, True), legend)
    return Section("size", "Divergence by size", [words], [picture]) if panels else None


def by_text(view: View) -> tuple[dict[tuple[str, str], list[Score]], str]:
    """Return the divergences by model and text, and the label of their axis."""
    on_texts = [s for s in view.scores.values() if not s.task]
    metric = KLD if any(s.metric == KLD for s in on_texts) else view.results.metric
    groups: dict[tuple[str, str], list[Score]] = {}
    axis = ""
    for s in on_texts:
        if s.metric == metric and s.calibration and math.isfinite(s.estimate):
            groups.setdefault((s.model, s.text), []).append(s)
            axis = axis or f"{s.words}, {s.unit}"
    return groups, axis


def mixtures(view: View) -> Section | None:
    """Return the divergence by a language's share of the calibration text."""
    groups, rows, partners = [], [], {}
    scored, axis = by_text(view)
    for (model, text), text_scores in scored.items():
        panels = []
        title = view.of_model(model) + view.text(text)
        for quant_type in view.types(s.type for s in text_scores):
            same_type = [s for s in text_scores if s.type == quant_type]
            series = []
            for other, steps in _doses(view, model, text, same_type).items():
                partners[other] = view.number(other)
                points = [Point(share, s.estimate, s.low, s.high) for share, s in steps]
                series.append(Series(other, view.number(other), points))
                for share, s in steps:
                    percent = Cell(f"{100 * share:.0f} %", share)
                    numbers = (percent, *cells.interval(s), view.signed(s.signatures))
                    rows.append(row(title, quant_type, s.calibration, *numbers))
            if series:
                caption = f"{view.of_model(model)}{quant_type} · {view.text(text)}"
                x_label = f"share of {text} in the calibration"
                panels.append(Chart(caption, x_label, axis, series, x_range=(-0.05, 1.05)))
        groups += [panels] if panels else []
    columns = ("text", "type", "calibration", "share", axis, *ENDS)
    words = (
        "The effect of a language’s share of the calibration text. From left to right the text’s"
        " language replaces the language of the line."
    )
    legend = [(n, f"mixed with {label}") for label, n in partners.items()]
    picture = Picture("", words, groups, Table(NUMBERS, columns, rows, True), legend)
    return Section("mixtures", "Mixtures", [words], [picture]) if groups else None


def _doses(view: View, model: str, text: str, scores: Sequence[Score]) -> dict[str, Steps]:
    """Return the other language of each two-language mixture, with the steps from none to all."""
    steps: dict[str, Steps] = {}
    pure: dict[str, Score] = {}
    for s in scores:
        calibration = view.calibrations.get((model, s.calibration))
        if calibration is None:
            continue
        others = [code for code in calibration.shares if code != text]
        if calibration.kind == "language":
            pure[s.calibration] = s
        elif calibration.kind == "mixture" and len(others) == 1 and text in calibration.shares:
            steps.setdefault(others[0], []).append((calibration.shares[text], s))
    for other, mixed in steps.items():
        mixed += [(share, pure[x]) for share, x in ((0.0, other), (1.0, text)) if x in pure]
        mixed.sort(key=lambda step: step[0])
    return steps


def predicted(view: View) -> Section | None:
    """Return predicted loss against measured divergence."""
    known = [p for p in view.results.predictions if math.isfinite(p.measured_kld_nats)]
    groups = []
    for model, language in dict.fromkeys((p.model, p.language) for p in known):
        panels = []
        for quant_type in view.types(p.type for p in known):
            key = (model, language, quant_type)
            points: dict[str, list[Point]] = {}
            for p in known:
                if (p.model, p.language, p.type) == key:
                    point = Point(p.predicted_loss, p.measured_kld_nats)
                    points.setdefault(p.calibration, []).append(point)
            labels = view.ordered(points)
            series = [Series(a, view.number(a), points[a], joined=False) for a in labels]
            if series:
                title = f"{view.of_model(model)}{quant_type} · {view.text(language)}"
                panels.append(Chart(title, "predicted loss", "measured KLD, nats a token", series))
        groups.append(panels)
    rows = [
        row(
            view.of_model(p.model) + view.text(p.language), p.calibration, _sample(p.sample),
            p.type, Cell(f"{p.predicted_loss:.5f}", p.predicted_loss),
            cells.number(p.measured_kld_nats),
        )
        for p in view.results.predictions
    ]  # fmt: skip
    columns = ("language", "calibration", "sample", "type", "predicted loss", "measured KLD, nats")
    words = (
        "The quantizer’s own objective, computed from weights and imatrices without running the"
        " model, against the measured divergence. Where it ranks calibrations as the measurement"
        " does, it can choose between them at no cost."
    )
    legend = [(view.number(a), a) for a in view.ordered(p.calibration for p in known)]
    picture = Picture("", words, groups, Table(NUMBERS, columns, rows, True), legend)
    table = _agreements(view)
    blocks: list[Block] = [picture, *([table] if table.rows else [])]
    return Section("predicted", "Predicted against measured", [words], blocks) if known else None


def _sample(sample: int) -> Cell:
    return Cell(format.count(sample) or "all", sample)


def _agreements(view: View) -> Table:
    rows = []
    for a in filter(lambda a: a.type, view.results.agreements):
        is_known = math.isfinite(a.spearman)
        spearman = f"{a.spearman:+.2f}".replace("-", "−") if is_known else format.UNKNOWN
        language = view.of_model(a.model) + view.text(a.language)
        rows.append(row(language, a.type, Cell(spearman, a.spearman), cells.count(a.n)))
    columns = ("language", "type", "Spearman correlation", "calibrations")
    return Table("Does the prediction rank them alike?", columns, rows)


def activations(view: View) -> Section | None:
    """Return how large what matrices read is, by language, role and layer."""
    shown, panels, rows = view.results.activations, [], []
    places = dict.fromkeys((a.model, a.role) for a in shown)
    for model, role in places:
        same, series = [a for a in shown if (a.model, a.role) == (model, role)], []
        caption = f"{view.of_model(model)}input of {role}"
        for i, a in enumerate(same):
            levels = list(zip(a.median, a.high, a.largest, strict=True))
            aside = (i - (len(same) - 1) / 2) * DODGE / len(same)  # so that bars stand apart
            points = [Point(n + aside, y, low, top) for n, (low, y, top) in enumerate(levels)]
            series.append(Series(a.calibration, view.number(a.calibration), points, joined=False))
            rows += [
                row(caption, a.calibration, Cell(str(layer), layer), *map(cells.number, each))
                for layer, each in enumerate(levels) if math.isfinite(each[1])
            ]  # fmt: skip
        panels.append(Chart(caption, "layer", "root mean square of a column", series, log_y=True))
    columns = ("matrices", "language", "layer", "median", "99th percentile", "largest")
    words = (
        "The range of what matrices read, by layer: marks are the 99th percentile over columns of"
        " the activations’ root mean square, bars go from the median to the largest. Where"
        " languages differ, so do the columns that a quantizer must spare. First sample of each."
    )
    legend = [(view.number(a), a) for a in view.ordered(a.calibration for a in shown)]
    picture = Picture("", words, [panels], Table(NUMBERS, columns, rows, True), legend)
    title = "Activations by language"
    return Section("activations", title, [words], [picture]) if shown else None


def similarity(view: View) -> Section | None:
    """Return the total variation between imatrices as a heat map."""
    tables = []
    for model in dict.fromkeys(s.model for s in view.results.similarities):
        pairs = [s for s in view.results.similarities if s.model == model]
        values = {k: s.total_variation for s in pairs for k in ((s.a, s.b), (s.b, s.a))}
        labels = view.ordered(itertools.chain.from_iterable((s.a, s.b) for s in pairs))
        top = max((v for v in values.values() if math.isfinite(v)), default=0.0)
        rows = [row(a, *(_heat(values.get((a, b)), a == b, top) for b in labels)) for a in labels]
        noise = next((s.noise for s in pairs if math.isfinite(s.noise)), None)
        note = "" if noise is None else f"Two samples of one language: {noise:.3f}."
        caption = f"{view.of_model(model)}Total variation, 0 (same) to 1"
        tables.append(Table(caption, ["imatrix", *labels], rows, look="heat", note=note))
    words = (
        "The share of the activations’ energy that is in other columns, mean over all tensors."
        " Darker is less alike. This is all that the quantizer sees of a language."
    )
    title = "How alike the importance matrices are"
    return Section("similarity", title, [words], tables) if tables else None


def _heat(value: float | None, is_self: bool, top: float) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell("" if is_self else format.UNKNOWN, math.nan, (), "missing")
    step = min(int(HEAT_STEPS * value / top), HEAT_STEPS - 1) if top > 0 else 0
    return Cell(f"{value:.3f}", value, (), f"heat-{max(step, 0)}")


def scores(view: View) -> Section | None:
    """Return every score, a column for each measure."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for s in view.results.scores:
        groups.setdefault((s.model, s.task), []).append(s)
    tables = []
    for (model, task), group in groups.items():
        metrics = dict.fromkeys((s.metric, s.words, s.unit) for s in group)
        grid: dict[tuple[str, str, str, int], dict[str, Score]] = {}
        for s in group:
            grid.setdefault((s.text, s.calibration, s.type, s.sample), {})[s.metric] = s
        rows = [
            row(
                view.text(text), label or "(original)", quant_type, _sample(sample),
                *(_score(by_metric.get(metric)) for metric, _, _ in metrics),
                cells.count(max(s.n for s in by_metric.values())),
                cells.count(max(s.n_clusters for s in by_metric.values())),
                view.signed(sorted({k for s in by_metric.values() for k in s.signatures})),
            )
            for (text, label, quant_type, sample), by_metric in grid.items()
        ]  # fmt: skip
        heads = (f"{words}, {unit}" if unit else words for _, words, unit in metrics)
        columns = ["text", "calibration", "type", "sample", *heads, "n", "clusters", "signature"]
        caption = f"{view.of_model(model)}{task or 'Held-out text'}"
        tables.append(Table(caption, columns, rows, folded=True))
    words = "Every value with its 95 % CI, by text, calibration, type and sample."
    return Section("scores", "All scores", [words], tables) if tables else None


def _score(s: Score | None) -> Cell:
    if s is None:
        return Cell(format.UNKNOWN, math.nan)
    interval = format.interval(s.low, s.high)
    value = format.number(s.estimate, s.low, s.high)
    return Cell(value, s.estimate, (interval,) if interval else ())
