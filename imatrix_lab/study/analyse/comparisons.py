"""Comparisons, interactions and controls of a study, in the units that results are printed in."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from imatrix_lab.compare import controls, design
from imatrix_lab.compare.compare import Report, compare_runs
from imatrix_lab.compare.design import ComparisonPlan
from imatrix_lab.compare.interactions import Interaction, TypeInteraction
from imatrix_lab.compare.sizes import SizeGap
from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import BadRecords
from imatrix_lab.report import results
from imatrix_lab.stats import sentences
from imatrix_lab.stats.comparison import Comparison
from imatrix_lab.stats.metrics import METRICS, Metric
from imatrix_lab.study.analyse.index import Index, RecordFile
from imatrix_lab.study.kinds import contrasts
from imatrix_lab.study.recipe import Recipe


@dataclass(frozen=True)
class Compared:
    """Comparisons, interactions, controls; comparisons that could not be made; notes; gaps.

    Contrasts are of types with each calibration; `refused` those whose sizes differ.
    """

    comparisons: tuple[results.Comparison, ...] = ()
    contrasts: tuple[results.Contrast, ...] = ()
    type_interactions: tuple[results.TypeInteraction, ...] = ()
    refused: tuple[str, ...] = ()
    interactions: tuple[results.Interaction, ...] = ()
    controls: tuple[results.Control, ...] = ()
    missing: tuple[results.Missing, ...] = ()
    notes: tuple[str, ...] = ()
    size_gaps: tuple[str, ...] = ()


def compare_all(index: Index, recipe: Recipe, progress: Progress) -> Compared:
    """Compare each model's quants on texts, and on tasks.

    A text on which nothing can be compared (one short document, say) is listed as missing; the
    rest is compared. Margins of the recipe are in the units of `METRICS`.
    """
    settings = recipe.comparison
    plan = ComparisonPlan(
        margins={m: value / METRICS[m].scale for m, value in settings.margins.items()},
        family=design.parse_family(settings.family),
        baseline=index.baseline if settings.baseline else "",
        adjust=settings.adjust,
        n_resamples=settings.resamples,
        seed=recipe.seed,
        any_size=True,  # a recipe names what is compared; the report begins with the sizes
        types=tuple(contrasts(recipe)),
        reference=index.baseline,
    )
    parts = []
    for records, metrics in ((index.tokens, settings.metrics), (index.items, ("score",))):
        for _, members in itertools.groupby(records, key=lambda r: r.model):
            part = _Part(index.for_comparison(members), plan, metrics)
            parts.append(part.compared(progress))
    names = (field.name for field in dataclasses.fields(Compared))
    return Compared(*(tuple(r for part in parts for r in getattr(part, name)) for name in names))


class _Part:
    """The records of one model, of texts or of tasks."""

    def __init__(self, records: list[RecordFile], plan: ComparisonPlan, metrics: Sequence[str]):
        self.records, self.plan, self.metrics = records, plan, metrics
        self.model = records[0].model

    def compared(self, progress: Progress) -> Compared:
        """Compare what can be compared; the rest is missing."""
        baseline = self.plan.baseline
        scored = {r.place() for r in self.records if not baseline or r.calibration == baseline}
        places = dict.fromkeys(r.place() for r in self.records)
        reasons = {p: f"{baseline} was not scored on it" for p in places if p not in scored}
        report, left = None, [r for r in self.records if r.place() in scored]
        while report is None and len(left) > 1:
            try:
                report = compare_runs([r.run for r in left], self.plan, self.metrics, progress)
            except BadRecords as error:
                bad = [r.place() for r in left if str(r.run.path) == error.where]
                reasons |= dict.fromkeys(bad or [r.place() for r in left], error.what)
                left = [r for r in left if r.place() not in reasons]
        missing = tuple(
            results.Missing(" ".join(filter(None, ("compare", *place))), why, "", ())
            for place, why in reasons.items()
        )
        if report is None:
            return Compared(missing=missing)
        controls_ = (
            _displayed(results.Control, METRICS[r.metric], vars(r), **self._place(r.text))
            for r in report.controls
        )
        return Compared(
            tuple(self._comparison(c, report) for c in report.comparisons),
            tuple(self._contrast(c, report) for c in report.contrasts),
            tuple(self._type_interaction(x, report) for x in report.type_interactions),
            self._words(report.refused),
            tuple(self._interaction(x) for x in report.interactions),
            tuple(controls_),
            missing,
            report.notes,
            self._words(report.size_gaps),
        )

    def _words(self, gaps: Sequence[SizeGap]) -> tuple[str, ...]:
        return tuple(f"{self.model}: {gap.words()}" for gap in gaps)

    def _place(self, title: str) -> dict[str, str]:
        """Return model, task and text of what `compare` calls a text."""
        task, _, language = title.rpartition(" ")
        task, text = (task, language) if self.records[0].task else ("", title)
        return {"model": self.model, "task": task, "text": text}

    def _comparison(self, c: Comparison, report: Report) -> results.Comparison:
        a, b = c.question.a.rpartition(" ")[0], c.question.b.rpartition(" ")[0]
        return self._compared(results.Comparison, c, report, a=a, b=b)

    def _contrast(self, c: Comparison, report: Report) -> results.Contrast:
        (calibration, _, a), b = c.question.a.rpartition(" "), c.question.b.rpartition(" ")[2]
        return self._compared(results.Contrast, c, report, a=a, b=b, calibration=calibration)

    def _compared(self, cls: type["Row"], c: Comparison, report: Report, **own: str) -> "Row":
        q, metric, place = c.question, c.question.metric, self._place(c.question.text)
        quant_type = q.a.rpartition(" ")[2]
        calibs = {side.rpartition(" ")[0] for side in (q.a, q.b)}
        own_controls = [r for r in report.controls if r.text == q.text]
        return _displayed(
            cls,
            metric,
            vars(c),
            **place,
            **own,
            type=quant_type,
            p_adjusted=c.p_adjusted(),
            verdict=c.verdict(),
            margin=math.nan if q.margin is None else q.margin,
            noise=controls.noise(own_controls, quant_type, metric.key, calibs),
            plain=sentences.plain(c),
            formal=sentences.formal(c),
            signatures=tuple(
                r.signature
                for level in (q.a, q.b)
                for r in self.records
                if (r.task, r.text, r.run.name()) == (place["task"], place["text"], level)
            ),
        )

    def _type_interaction(self, x: TypeInteraction, report: Report) -> results.TypeInteraction:
        metric, types = METRICS[x.metric], (x.type_a, x.type_b)
        calibrations = (x.calib or "the text's own language", x.reference)
        title = f"{x.task} {x.text}".strip()
        place = title if x.text else f"the mean of {x.n_texts} texts"
        place = place if x.text or x.n_texts > 1 else "one text"
        rows = [r for r in report.controls if not x.text or r.text == title]
        calibs = {x.calib, x.reference} if x.text else None
        noise = controls.noise(rows, x.type_a, x.metric, calibs)
        facts = (metric, x.contrast, x.p_holm)
        return _displayed(
            results.TypeInteraction,
            metric,
            {**vars(x.contrast), **vars(x)},
            model=self.model,
            calibration=x.calib,
            noise=noise,
            plain=sentences.plain_type_interaction(f"On {place}", types, calibrations, *facts),
            formal=sentences.formal_type_interaction(types, calibrations, place, *facts),
        )

    def _interaction(self, x: Interaction) -> results.Interaction:
        metric = METRICS[x.metric]
        facts = (x.a, x.b, x.type, metric, x.contrast, x.p_holm)
        return _displayed(
            results.Interaction,
            metric,
            {**vars(x.contrast), **vars(x)},
            model=self.model,
            plain=sentences.plain_interaction(*facts),
            formal=sentences.formal_interaction(*facts),
        )


Row = TypeVar(
    "Row",
    results.Comparison,
    results.Contrast,
    results.TypeInteraction,
    results.Interaction,
    results.Control,
)


def _displayed(cls: type[Row], metric: Metric, values: dict[str, Any], **own: Any) -> Row:
    """Return a row of results: fields by name, differences in the metric's unit.

    A difference that is unknown or unbounded is NaN.
    """
    every = {**vars(metric), **values, **own, "metric": metric.key}
    for name in ("estimate", "low", "high", "detectable", "margin", "noise"):
        if name in every:
            every[name] = every[name] * metric.scale if math.isfinite(every[name]) else math.nan
    return cls(**{field.name: every[field.name] for field in dataclasses.fields(cls)})
