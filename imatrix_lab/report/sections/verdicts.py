"""Which calibration is better: the matrix, the differences, and what the language itself gains."""

import math
from collections.abc import Iterable, Sequence

from imatrix_lab.core import format
from imatrix_lab.report.blocks import Cell, Forest, ForestRow, Picture, Sayings, Section, Table
from imatrix_lab.report.lookup import Measure, View
from imatrix_lab.report.results import Comparison, Interaction

SQUEEZED = 2.5
"""How many times as wide a picture may become for controls."""
VERDICTS = ("better", "worse", "equivalent", "undecided")


def matrix(view: View) -> Section | None:
    """Return the verdict matrices: calibration x text, one for each type, by measure."""
    blocks: list[Table] = []
    for measure in view.measures():
        rows = view.against_baseline(measure)
        for kind in view.types(c.type for c in rows):
            here = [c for c in rows if c.type == kind]
            blocks.append(_matrix_of(view, measure, kind, here))
    if not blocks:
        return None
    base = view.found.baseline
    return Section(
        "verdicts", "Verdicts",
        (
            f"Each cell compares the calibration of its row with “{base}” on the text of its"
            f" column, token by token or item by item: the verdict, the difference (row minus"
            f" {base}) and its 95 % interval. The row of {base} itself shows its own value."
            " Outlined: a calibration on the language itself. Intervals are those of a comparison"
            " alone; verdicts allow for all that were made (see Methods).",
        ),
        tuple(blocks),
    )  # fmt: skip


def _matrix_of(view: View, measure: Measure, kind: str, here: Sequence[Comparison]) -> Table:
    base = view.found.baseline
    texts = tuple(dict.fromkeys(c.text for c in here))
    by_place = {(c.a, c.text): c for c in here}
    rows = [(_row_head(view, measure.model, base), *(_base(view, measure, kind, t) for t in texts))]
    for label in view.ordered(c.a for c in here):
        cells = (
            _verdict(view, by_place.get((label, text)), measure.model, label, text)
            for text in texts
        )
        rows.append((_row_head(view, measure.model, label), *cells))
    lower = "less" if here[0].lower_is_better else "more"
    return Table(
        f"{kind} · {view.title(measure)} ({lower} is better)",
        ("calibration", *(view.text(t) for t in texts)),
        tuple(rows), numeric=frozenset(range(1, len(texts) + 1)),
        folded=not view.decides(measure.task, measure.metric), look="matrix",
    )  # fmt: skip


def _row_head(view: View, model: str, label: str) -> Cell:
    about = view.about(model, label)
    if label == view.found.baseline:
        return Cell(label, more=(about, "compared with this") if about else ("compared with this",))
    return Cell(label, more=(about,) if about else ())


def _base(view: View, measure: Measure, kind: str, text: str) -> Cell:
    """Return the baseline's own value, which gives the differences their scale."""
    wanted = (measure.model, measure.task, measure.metric, kind, view.found.baseline, text)
    own = " own" if view.is_own(measure.model, view.found.baseline, text) else ""
    for s in view.scores:
        if (s.model, s.task, s.metric, s.type, s.calibration, s.text) == wanted:
            found = format.number(s.estimate, s.low, s.high)
            return Cell(found, math.nan, (format.interval(s.low, s.high),), f"base{own}")
    return Cell(format.UNKNOWN, math.nan, (), f"base{own}")


def _verdict(view: View, c: Comparison | None, model: str, label: str, text: str) -> Cell:
    own = " own" if view.is_own(model, label, text) else ""
    if c is None:
        return Cell("not measured", math.nan, (), f"missing{own}")
    more = [
        format.number(c.estimate, c.low, c.high, plus=True),
        format.interval(c.low, c.high, True),
    ]
    if math.isfinite(c.noise_multiple):
        more.append(f"{c.noise_multiple:.1f} × noise")
    return Cell(c.verdict, c.estimate, tuple(m for m in more if m), f"{c.verdict}{own}")


def differences(view: View) -> Section | None:
    """Return the forest plots, and every comparison as a table and in words."""
    blocks: list[Picture | Table | Sayings] = []
    for measure in view.measures():
        table = _comparisons(view, measure)
        if view.against_baseline(measure):
            blocks.append(_forest(view, measure, table))
        else:
            blocks.append(table)
    if not blocks:
        return None
    pairs = tuple((c.plain, c.formal) for m in view.measures() for c in view.against_baseline(m))
    if pairs:
        blocks.append(Sayings("Every comparison with the baseline in words", pairs, folded=True))
    return Section(
        "differences", "Differences",
        (
            "Mean paired differences with 95 % intervals. The grey band is the noise: what two"
            " single samples of the calibrations compared differ by. Dashed: the margin, the"
            " smallest difference that was declared to matter. An arrow at the edge lies further"
            " out than is drawn.",
        ),
        tuple(blocks),
    )  # fmt: skip


def _forest(view: View, measure: Measure, table: Table) -> Picture:
    shown, groups = view.against_baseline(measure), []
    for kind in view.types(c.type for c in shown):
        here = [c for c in shown if c.type == kind]
        panels, x_range = [], _range(view, here)
        for text in dict.fromkeys(c.text for c in here):
            rows = {c.a: c for c in here if c.text == text}
            shown_rows = tuple(
                _forest_row(view, rows.get(a), measure.model, a, text)
                for a in view.ordered(c.a for c in here)
            )
            forest = Forest(
                f"{kind} · {view.text(text)}", f"{measure.unit}, minus {view.found.baseline}",
                shown_rows, here[0].margin, x_range, here[0].lower_is_better,
            )  # fmt: skip
            panels.append(forest)
        groups.append(tuple(panels))
    return Picture(
        view.title(measure),
        f"Paired differences from {view.found.baseline} with 95 % intervals, noise and margin",
        tuple(groups), table, folded=not view.decides(measure.task, measure.metric),
    )  # fmt: skip


def _forest_row(view: View, c: Comparison | None, model: str, label: str, text: str) -> ForestRow:
    own = view.is_own(model, label, text)
    if c is None:
        return ForestRow(label, math.nan, math.nan, math.nan, "not measured", math.nan, own)
    return ForestRow(c.a, c.estimate, c.low, c.high, c.verdict, c.noise, own)


def _range(view: View, here: Sequence[Comparison]) -> tuple[float, float]:
    """Return the ends of the axis: of all, unless far-off controls would squeeze the others."""
    kinds = {c.a: view.calibration(c.model, c.a) for c in here}
    far = {a for a, made in kinds.items() if made is None or made.kind in ("none", "control")}
    everything, others = (
        _span(e for c in rows for e in (c.estimate, c.low, c.high, c.margin, -c.margin))
        for rows in (here, [c for c in here if c.a not in far])
    )
    is_squeezed = everything[1] - everything[0] > SQUEEZED * (others[1] - others[0])
    return others if is_squeezed and len(far) < len(kinds) else everything


def _span(values: Iterable[float]) -> tuple[float, float]:
    """Return the ends of an axis that shows 0 and all values, with a little room."""
    known = [0.0, *(v for v in values if math.isfinite(v))]
    room = 0.06 * (max(known) - min(known)) or 1.0
    return min(known) - room, max(known) + room


def _comparisons(view: View, measure: Measure) -> Table:
    caption = f"All comparisons · {view.title(measure)}"
    columns = (
        "type", "on", "A", "B", "A minus B", "low", "high", "verdict", "p", "p adjusted",
        "margin", "p equivalence", "noise", "× noise", "detectable", "values", "groups",
        "values to decide", "signed",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(c.type), Cell(view.text(c.text)), Cell(c.a), Cell(c.b),
            *(
                Cell(format.number(v, c.low, c.high, plus=True), v)
                for v in (c.estimate, c.low, c.high)
            ),
            Cell(c.verdict, mark=c.verdict),
            *(Cell(format.probability(p), p) for p in (c.p_value, c.p_adjusted)),
            Cell(format.number(c.margin), c.margin),
            Cell(format.probability(c.p_equivalence), c.p_equivalence),
            Cell(format.number(c.noise, c.low, c.high), c.noise),
            Cell(_times(c.noise_multiple), c.noise_multiple),
            Cell(format.number(c.detectable, c.low, c.high), c.detectable),
            Cell(format.count(c.n), c.n), Cell(format.count(c.n_clusters), c.n_clusters),
            Cell(format.count(c.n_to_decide), c.n_to_decide),
            view.signed(c.signatures),
        )
        for c in view.comparisons(measure)
    )  # fmt: skip
    return Table(caption, columns, rows, frozenset([4, 5, 6, *range(8, 18)]), folded=True)


def _times(multiple: float) -> str:
    return f"{multiple:.1f}" if math.isfinite(multiple) else format.UNKNOWN


def interactions(view: View) -> Section | None:
    """Return whether languages gain more from their own calibration than others do."""
    found = view.found.interactions
    if not found:
        return None
    first = [x for x in found if view.decides(x.task, x.metric)]
    rest = [x for x in found if not view.decides(x.task, x.metric)]
    blocks = [_contrasts(view, "Contrasts", first, False)] if first else []
    blocks += [_contrasts(view, "Contrasts in other metrics", rest, True)] if rest else []
    pairs = tuple((x.plain, x.formal) for x in (*first, *rest))
    return Section(
        "own-language", "Does each language gain from its own text?",
        (
            "For two languages A and B the contrast is (A − B on A’s text) − (A − B on B’s text),"
            " where A − B is calibration A minus calibration B. That one calibration is better"
            " everywhere cancels; what is left is what each gains from its own.",
        ),
        (*blocks, Sayings("Every contrast in words", pairs, folded=True)),
    )  # fmt: skip


def _contrasts(view: View, caption: str, found: Sequence[Interaction], folded: bool) -> Table:
    rows = tuple(
        (
            Cell(f"{view.of_model(x.model)}{x.a} and {x.b}"), Cell(x.type),
            Cell(f"{x.task} {x.metric}".strip()),
            *(
                Cell(format.number(v, x.low, x.high, plus=True), v)
                for v in (x.estimate, x.low, x.high)
            ),
            Cell(x.unit),
            *(Cell(format.probability(p), p) for p in (x.p_value, x.p_holm)),
        )
        for x in found
    )  # fmt: skip
    columns = ("languages", "type", "metric", "contrast", "low", "high", "unit", "p", "p (Holm)")
    return Table(caption, columns, rows, frozenset((3, 4, 5, 7, 8)), folded)
