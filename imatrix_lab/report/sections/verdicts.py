"""Which calibration is better: the verdict matrix, the differences, the interactions."""

import math
from collections.abc import Iterable, Sequence

from imatrix_lab.core import format
from imatrix_lab.report import cells
from imatrix_lab.report.blocks import Block, Forest, ForestRow, Picture, Section, Statements, Table
from imatrix_lab.report.cells import Cell, row
from imatrix_lab.report.lookup import Measure, View
from imatrix_lab.report.results import Comparison, Contrast

SQUEEZED = 2.5
"""Controls may widen a picture's axis by at most this factor."""
NOT_MEASURED = (math.nan, math.nan, math.nan, "not measured", math.nan)
VERDICTS = ("better", "worse", "equivalent", "undecided")


def matrix(view: View) -> Section | None:
    """Return the verdict matrices, calibration x text: one for each measure and quant type."""
    blocks = []
    for measure in view.measures():
        comparisons = view.against_baseline(measure)
        for quant_type in view.types(c.type for c in comparisons):
            same_type = [c for c in comparisons if c.type == quant_type]
            blocks.append(_matrix_of(view, measure, same_type))
    base = view.results.baseline
    words = (
        f"Each cell compares the calibration of its row with the baseline “{base}” on the text of"
        " its column, token by token or item by item: the verdict, the difference (row minus"
        f" {base}) and its 95 % CI. The row of {base} shows its own value. Outlined: a calibration"
        " on the language itself. Intervals are not adjusted for multiple comparisons; verdicts"
        " are (see Methods)."
    )
    return Section("verdicts", "Verdicts", [words], blocks) if blocks else None


def _matrix_of(view: View, measure: Measure, comparisons: Sequence[Comparison]) -> Table:
    base, model, quant_type = view.results.baseline, measure.model, comparisons[0].type
    texts = dict.fromkeys(c.text for c in comparisons)
    by_place = {(c.a, c.text): c for c in comparisons}
    rows = [(_row_head(view, model, base), *(_base(view, measure, quant_type, t) for t in texts))]
    for label in view.ordered(c.a for c in comparisons):
        verdicts = (_verdict(view, by_place.get((label, t)), model, label, t) for t in texts)
        rows.append((_row_head(view, model, label), *verdicts))
    lower = "less" if comparisons[0].lower_is_better else "more"
    caption = f"{quant_type} · {view.title(measure)} ({lower} is better)"
    folded = not view.decides(measure.task, measure.metric)
    return Table(caption, ["calibration", *map(view.text, texts)], rows, folded, look="matrix")


def _row_head(view: View, model: str, label: str) -> Cell:
    more = [view.about(model, label), "baseline" if label == view.results.baseline else ""]
    return Cell(label, more=tuple(filter(None, more)))


def _base(view: View, measure: Measure, quant_type: str, text: str) -> Cell:
    """Return the baseline's own value, which gives the differences their scale."""
    base = view.results.baseline
    key = (measure.model, measure.task, text, measure.metric, quant_type, base)
    mark = "base own" if view.is_own(measure.model, base, text) else "base"
    if (s := view.scores.get(key)) is None:
        return Cell(format.UNKNOWN, math.nan, (), mark)
    value = format.number(s.estimate, s.low, s.high)
    return Cell(value, math.nan, (format.interval(s.low, s.high),), mark)


def _verdict(view: View, c: Comparison | None, model: str, label: str, text: str) -> Cell:
    own = " own" if view.is_own(model, label, text) else ""
    if c is None:
        return Cell("not measured", math.nan, (), f"missing{own}")
    more = [
        format.number(c.estimate, c.low, c.high, plus=True),
        format.interval(c.low, c.high, True),
        f"{c.noise_multiple:.1f} × noise" if math.isfinite(c.noise_multiple) else "",
    ]
    return Cell(c.verdict, c.estimate, tuple(filter(None, more)), f"{c.verdict}{own}")


def differences(view: View) -> Section | None:
    """Return the forest plots, and every comparison as a table and in words."""
    blocks: list[Block] = []
    pairs = []
    for measure in view.measures():
        table = all_of(view, measure, view.comparisons(measure))
        comparisons = view.against_baseline(measure)
        blocks.append(_forests(view, measure, table) if comparisons else table)
        pairs += [(c.plain, c.formal) for c in comparisons]
    if pairs:
        blocks.append(Statements("Every comparison with the baseline in words", pairs, folded=True))
    words = (
        "Mean paired differences with 95 % CI. The grey band is the noise: the difference between"
        " two single samples of the compared calibrations. Dashed: the margin, the smallest"
        " difference declared to matter. An arrow at the edge: the value is off the scale."
    )
    return Section("differences", "Differences", [words], blocks) if blocks else None


def _forests(view: View, measure: Measure, table: Table) -> Picture:
    base, groups, comparisons = view.results.baseline, [], view.against_baseline(measure)
    for quant_type in view.types(c.type for c in comparisons):
        same_type = [c for c in comparisons if c.type == quant_type]
        labels = view.ordered(c.a for c in same_type)
        by_place = {(c.text, c.a): c for c in same_type}
        first, x_range = same_type[0], _range(view, same_type)
        forests = []
        for text in dict.fromkeys(c.text for c in same_type):
            rows = []
            for label in labels:
                c = by_place.get((text, label))
                values = (c.estimate, c.low, c.high, c.verdict, c.noise) if c else NOT_MEASURED
                rows.append(ForestRow(label, *values, view.is_own(measure.model, label, text)))
            words = (f"{quant_type} · {view.text(text)}", f"{measure.unit}, minus {base}")
            forests.append(Forest(*words, rows, first.margin, x_range, first.lower_is_better))
        groups.append(forests)
    description = f"Paired differences from {base} with 95 % CI, noise and margin"
    folded = not view.decides(measure.task, measure.metric)
    return Picture(view.title(measure), description, groups, table, folded=folded)


def _range(view: View, comparisons: Sequence[Comparison]) -> tuple[float, float]:
    """Return the ends of the axis: of all, unless far-off controls would squeeze the others."""
    calibrations = {c.a: view.calibrations.get((c.model, c.a)) for c in comparisons}
    far = {a for a, c in calibrations.items() if c is None or c.kind in ("none", "control")}
    everything, others = map(span, (comparisons, [c for c in comparisons if c.a not in far]))
    is_squeezed = everything[1] - everything[0] > SQUEEZED * (others[1] - others[0])
    return others if is_squeezed and len(far) < len(calibrations) else everything


def span(comparisons: Iterable[Comparison]) -> tuple[float, float]:
    """Return the ends of an axis that shows 0 and all values, with a little room."""
    values = (v for c in comparisons for v in (c.estimate, c.low, c.high, c.margin, -c.margin))
    known = [0.0, *filter(math.isfinite, values)]
    room = 0.06 * (max(known) - min(known)) or 1.0
    return min(known) - room, max(known) + room


def all_of(view: View, measure: Measure, comparisons: Sequence[Comparison]) -> Table:
    """Return every number of some comparisons, or of contrasts of types."""
    of_types = any(isinstance(c, Contrast) for c in comparisons)
    columns = ["calibration" if of_types else "type", "on", "A", "B", "A minus B"]
    columns += ["low", "high", "verdict", "p", "p adjusted", "margin", "p equivalence", "noise"]
    columns += ["× noise", "detectable", "n", "clusters", "n to decide", "signature"]
    rows = [
        row(
            c.calibration if isinstance(c, Contrast) else c.type, view.text(c.text), c.a, c.b,
            *cells.interval(c, plus=True),
            Cell(c.verdict, mark=c.verdict), *map(cells.p_value, (c.p_value, c.p_adjusted)),
            cells.number(c.margin), cells.p_value(c.p_equivalence),
            cells.number(c.noise, c.low, c.high), cells.multiple(c.noise_multiple),
            cells.number(c.detectable, c.low, c.high),
            *map(cells.count, (c.n, c.n_clusters, c.n_to_decide)), view.signed(c.signatures),
        )
        for c in comparisons
    ]  # fmt: skip
    return Table(f"All comparisons · {view.title(measure)}", columns, rows, folded=True)


def interactions(view: View) -> Section | None:
    """Return whether languages gain more from their own calibration than others do."""
    columns = ("languages", "type", "metric", "contrast", "low", "high", "unit", "p", "p (Holm)")
    blocks: list[Block] = []
    shown, pairs = view.results.interactions, []
    for caption, folded in (("Contrasts", False), ("Contrasts in other metrics", True)):
        contrasts = [x for x in shown if view.decides(x.task, x.metric) != folded]
        rows = [
            row(
                f"{view.of_model(x.model)}{x.a} and {x.b}", x.type, f"{x.task} {x.metric}".strip(),
                *cells.interval(x, plus=True), x.unit, *map(cells.p_value, (x.p_value, x.p_holm)),
            )
            for x in contrasts
        ]  # fmt: skip
        blocks += [Table(caption, columns, rows, folded)] if rows else []
        pairs += [(x.plain, x.formal) for x in contrasts]
    blocks.append(Statements("Every contrast in words", pairs, folded=True))
    words = (
        "The interaction of calibration and language: for two languages A and B, the contrast"
        " (A − B on A’s text) − (A − B on B’s text), where A − B is calibration A minus calibration"
        " B. An advantage of one calibration everywhere cancels; what remains is what each"
        " language gains from its own text."
    )
    title = "Does each language gain from its own text?"
    return Section("own-language", title, [words], blocks) if shown else None
