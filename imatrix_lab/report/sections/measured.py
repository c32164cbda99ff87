"""What was measured beside the comparisons: size, mixtures, predictions, similarity, scores."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from imatrix_lab.core import format
from imatrix_lab.report.blocks import Cell, Chart, Picture, Point, Section, Series, Table
from imatrix_lab.report.lookup import View
from imatrix_lab.report.results import Score

KLD = "kld_nats"
HEAT_STEPS = 8


def size(view: View) -> Section | None:
    """Return the divergence against bits per weight, for each text."""
    panels, rows = [], []
    for model, text in _texts(view):
        here = [s for s in _divergences(view) if (s.model, s.text) == (model, text)]
        series = []
        for label in view.ordered(s.calibration for s in here):
            points = []
            for s in (s for s in here if s.calibration == label):
                quant = view.quant(model, label, s.type)
                if quant is None:
                    continue
                points.append(Point(quant.bits_per_weight, s.estimate, s.low, s.high))
                rows.append(
                    (
                        Cell(view.of_model(model) + view.text(text)), Cell(label), Cell(s.type),
                        Cell(format.size(quant.size_bytes), quant.size_bytes),
                        Cell(f"{quant.bits_per_weight:.2f}", quant.bits_per_weight),
                        *_estimate(s), view.signed(s.signatures),
                    )
                )  # fmt: skip
            points.sort(key=lambda p: p.x)
            series.append(Series(label, view.number(label), tuple(points)))
        if any(s.points for s in series):
            title = view.of_model(model) + view.text(text)
            panels.append(Chart(title, "bits per weight", _axis(view), tuple(series), log_y=True))
    if not panels:
        return None
    columns = ("text", "calibration", "type", "size", "bits per weight", _axis(view), "low",
               "high", "signed")  # fmt: skip
    table = Table("The same in numbers", columns, tuple(rows), frozenset(range(3, 8)), True)
    words_ = (
        "How far a quant is from the original for the room it takes, with 95 % intervals;"
        " down and to the left is better. Bits per weight are over all tensors, fallback included.",
    )
    picture = Picture("", words_[0], (tuple(panels),), table, _legend(view))
    return Section("size", "Divergence against size", words_, (picture,))


def _divergences(view: View) -> Iterator[Score]:
    metrics = {s.metric for s in view.scores if not s.task}
    wanted = KLD if KLD in metrics else view.found.metric
    return (
        s for s in view.scores
        if not s.task and s.metric == wanted and s.calibration and math.isfinite(s.estimate)
    )  # fmt: skip


def _axis(view: View) -> str:
    return next((f"{s.words}, {s.unit}" for s in _divergences(view)), "")


def _texts(view: View) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys((s.model, s.text) for s in _divergences(view)))


def _estimate(s: Score) -> tuple[Cell, Cell, Cell]:
    ends = (s.estimate, s.low, s.high)
    return tuple(Cell(format.number(v, s.low, s.high), v) for v in ends)  # type: ignore[return-value]


def _legend(view: View, labels: Iterable[str] = ()) -> tuple[tuple[int, str], ...]:
    wanted = view.ordered(labels) or view.labels
    return tuple((view.number(label), label) for label in wanted)


def mixtures(view: View) -> Section | None:
    """Return the divergence against a language's share of the calibration text."""
    groups, rows, partners = [], [], {}
    for model, text in _texts(view):
        panels = []
        here = [s for s in _divergences(view) if (s.model, s.text) == (model, text)]
        for kind in view.types(s.type for s in here):
            series = []
            for other, points in _doses(view, model, text, [s for s in here if s.type == kind]):
                partners[other] = view.number(other)
                steps = tuple(Point(share, s.estimate, s.low, s.high) for share, s in points)
                series.append(Series(other, view.number(other), steps))
                rows += [
                    (
                        Cell(view.of_model(model) + view.text(text)), Cell(kind),
                        Cell(s.calibration), Cell(f"{100 * share:.0f} %", share), *_estimate(s),
                        view.signed(s.signatures),
                    )
                    for share, s in points
                ]  # fmt: skip
            if series:
                title = f"{view.of_model(model)}{kind} · {view.text(text)}"
                panels.append(
                    Chart(title, f"share of {text} in the calibration", _axis(view), tuple(series),
                          x_range=(-0.05, 1.05))
                )  # fmt: skip
        groups += [tuple(panels)] if panels else []
    if not groups:
        return None
    columns = ("text", "type", "calibration", "share", _axis(view), "low", "high", "signed")
    table = Table("The same in numbers", columns, tuple(rows), frozenset((3, 4, 5, 6)), True)
    said = (
        "What a little of a language in the calibration text buys. From left to right the text’s"
        " language takes the place of the one that the line is named after.",
    )
    legend = tuple((n, f"mixed with {label}") for label, n in partners.items())
    picture = Picture("", said[0], tuple(groups), table, legend)
    return Section("mixtures", "Mixtures", said, (picture,))


def _doses(
    view: View, model: str, text: str, here: Sequence[Score]
) -> Iterator[tuple[str, list[tuple[float, Score]]]]:
    """Yield the other language of each two-language mixture, with the steps from none to all."""
    steps: dict[str, list[tuple[float, Score]]] = {}
    pure: dict[str, Score] = {}
    for s in here:
        made = view.calibration(model, s.calibration)
        if made is None:
            continue
        others = [code for code in made.shares if code != text]
        if made.kind == "language":
            pure[s.calibration] = s
        elif made.kind == "mixture" and len(others) == 1 and text in made.shares:
            steps.setdefault(others[0], []).append((made.shares[text], s))
    for other, points in steps.items():
        ends = [(0.0, pure[other])] if other in pure else []
        ends += [(1.0, pure[text])] if text in pure else []
        yield other, sorted((*points, *ends), key=lambda point: point[0])


def predicted(view: View) -> Section | None:
    """Return predicted loss against measured divergence."""
    known = [p for p in view.found.predictions if math.isfinite(p.measured_kld_nats)]
    if not known:
        return None
    groups = []
    for model, language in dict.fromkeys((p.model, p.language) for p in known):
        panels = []
        for kind in view.types(p.type for p in known):
            here = [p for p in known if (p.model, p.language, p.type) == (model, language, kind)]
            series = tuple(
                Series(
                    label, view.number(label), tuple(
                        Point(p.predicted_loss, p.measured_kld_nats, math.nan, math.nan)
                        for p in here if p.calibration == label
                    ), joined=False,
                )
                for label in view.ordered(p.calibration for p in here)
            )  # fmt: skip
            if series:
                title = f"{view.of_model(model)}{kind} · {view.text(language)}"
                panels.append(Chart(title, "predicted loss", "measured KLD, nats a token", series))
        groups.append(tuple(panels))
    rows = tuple(
        (
            Cell(view.of_model(p.model) + view.text(p.language)), Cell(p.calibration),
            Cell(format.count(p.sample) or "all", p.sample), Cell(p.type),
            Cell(f"{p.predicted_loss:.5f}", p.predicted_loss),
            Cell(format.number(p.measured_kld_nats), p.measured_kld_nats),
        )
        for p in view.found.predictions
    )  # fmt: skip
    columns = ("language", "calibration", "sample", "type", "predicted loss", "measured KLD, nats")
    table = Table("The same in numbers", columns, rows, frozenset((2, 4, 5)), True)
    said = (
        "The quantizer’s own objective, computed from weights and imatrices without running the"
        " model, beside what was measured. Where it ranks calibrations as the measurement does,"
        " it can choose between them at no cost.",
    )
    labels = {p.calibration for p in known}
    picture = Picture("", said[0], tuple(groups), table, _legend(view, labels))
    blocks = (picture, _agreements(view)) if view.found.agreements else (picture,)
    return Section("predicted", "Predicted against measured", said, blocks)


def _agreements(view: View) -> Table:
    rows = tuple(
        (
            Cell(view.of_model(a.model) + view.text(a.language)), Cell(a.type),
            Cell(f"{a.spearman:+.2f}".replace("-", "−") if math.isfinite(a.spearman)
                 else format.UNKNOWN, a.spearman),
            Cell(format.count(a.n), a.n),
        )
        for a in view.found.agreements
    )  # fmt: skip
    columns = ("language", "type", "rank correlation", "calibrations")
    return Table("Does the prediction rank them alike?", columns, rows, frozenset((2, 3)))


def similarity(view: View) -> Section | None:
    """Return the total variation between imatrices as a heat map."""
    found = view.found.similarities
    tables = []
    for model in dict.fromkeys(s.model for s in found):
        here = {(s.a, s.b): s.total_variation for s in found if s.model == model}
        labels = view.ordered(itertools.chain.from_iterable(here))
        top = max((v for v in here.values() if math.isfinite(v)), default=0.0)
        rows = tuple(
            (Cell(a), *(_heat(here.get((a, b), here.get((b, a), math.nan)), a == b, top)
                        for b in labels))
            for a in labels
        )  # fmt: skip
        noise = next((s.noise for s in found if s.model == model and math.isfinite(s.noise)), None)
        note = "" if noise is None else f"Two samples of one language: {noise:.3f}."
        tables.append(
            Table(f"{view.of_model(model)}Total variation, 0 (same) to 1", ("imatrix", *labels),
                  rows, frozenset(range(1, len(labels) + 1)), look="heat", note=note)
        )  # fmt: skip
    if not tables:
        return None
    said = (
        "The share of the activations’ energy that lies in other columns, mean over all tensors."
        " Darker is less alike. What the quantizer sees of a language is this, and nothing else.",
    )
    return Section("similarity", "How alike the importance matrices are", said, tuple(tables))


def _heat(value: float, is_self: bool, top: float) -> Cell:
    if not math.isfinite(value):
        return Cell("" if is_self else format.UNKNOWN, math.nan, (), "missing")
    step = min(int(HEAT_STEPS * value / top), HEAT_STEPS - 1) if top > 0 else 0
    return Cell(f"{value:.3f}", value, (), f"heat-{max(step, 0)}")


def scores(view: View) -> Section | None:
    """Return every score, a column for each measure."""
    tables = []
    kinds = dict.fromkeys((s.model, s.task) for s in view.found.scores)
    for model, task in kinds:
        here = [s for s in view.found.scores if (s.model, s.task) == (model, task)]
        metrics = dict.fromkeys((s.metric, s.words, s.unit) for s in here)
        grid: dict[tuple[str, str, str, int], dict[str, Score]] = {}
        for s in here:
            grid.setdefault((s.text, s.calibration, s.type, s.sample), {})[s.metric] = s
        rows = tuple(
            (
                Cell(view.text(text)), Cell(label or "(original)"), Cell(kind),
                Cell(format.count(sample) or "all", sample),
                *(_score(by_metric.get(metric)) for metric, _, _ in metrics),
                _counted(by_metric, "n"), _counted(by_metric, "n_clusters"),
                view.signed(sorted({k for s in by_metric.values() for k in s.signatures})),
            )
            for (text, label, kind, sample), by_metric in grid.items()
        )  # fmt: skip
        heads = tuple(f"{said}, {unit}" if unit else said for _, said, unit in metrics)
        columns = ("text", "calibration", "type", "sample", *heads, "values", "groups", "signed")
        tables.append(
            Table(f"{view.of_model(model)}{task or 'Held-out text'}", columns, rows,
                  frozenset(range(3, len(columns) - 1)), folded=True)
        )  # fmt: skip
    if not tables:
        return None
    said = ("Every value with its 95 % interval, by text, calibration, type and sample.",)
    return Section("scores", "All scores", said, tuple(tables))


def _score(s: Score | None) -> Cell:
    if s is None:
        return Cell(format.UNKNOWN, math.nan)
    found = format.number(s.estimate, s.low, s.high)
    return Cell(found, s.estimate, tuple(m for m in (format.interval(s.low, s.high),) if m))


def _counted(by_metric: dict[str, Score], name: str) -> Cell:
    n = max(getattr(s, name) for s in by_metric.values())
    return Cell(format.count(n), n)
