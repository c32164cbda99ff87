"""What `compare` judges of a study, in the units that results are printed in."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imatrix_lab.compare import controls, design
from imatrix_lab.compare.compare import Report, compare_runs
from imatrix_lab.compare.design import ComparisonPlan
from imatrix_lab.compare.interactions import Interaction
from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import BadRecords
from imatrix_lab.report import results
from imatrix_lab.report.results import Missing
from imatrix_lab.stats import sentences
from imatrix_lab.stats.comparison import Comparison
from imatrix_lab.stats.metrics import METRICS, Metric
from imatrix_lab.study.analyse.index import Grid, Record
from imatrix_lab.study.recipe import Recipe


@dataclass(frozen=True)
class Judged:
    """Comparisons, interactions, controls; comparisons that could not be made; notes."""

    comparisons: tuple[results.Comparison, ...]
    interactions: tuple[results.Interaction, ...]
    controls: tuple[results.Control, ...]
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]


def judged(grid: Grid, recipe: Recipe, progress: Progress) -> Judged:
    """Return the judgements of each model's texts, and of its tasks.

    A text of which nothing can be said (one short document, say) is left out and named; the rest
    is judged. Margins of the recipe are in the units of `METRICS`.
    """
    said = recipe.comparison
    plan = ComparisonPlan(
        margins={m: value / METRICS[m].scale for m, value in said.margins.items()},
        family=design.parse_family(said.family),
        baseline=grid.baseline if said.baseline else "",
        adjust=said.adjust,
        n_resamples=said.resamples,
        seed=recipe.seed,
    )
    parts = []
    for records, metrics in ((grid.tokens, said.metrics), (grid.items, ("score",))):
        for _, members in itertools.groupby(records, key=lambda r: r.model):
            one = _Part(grid.judged(members), plan, metrics)
            parts.append(one.judged(progress))
    return Judged(
        tuple(c for p in parts for c in p.comparisons),
        tuple(x for p in parts for x in p.interactions),
        tuple(r for p in parts for r in p.controls),
        tuple(m for p in parts for m in p.missing),
        tuple(n for p in parts for n in p.notes),
    )


class _Part:
    """The records of one model, of texts or of tasks."""

    def __init__(self, records: Sequence[Record], plan: ComparisonPlan, metrics: Sequence[str]):
        self.records, self.plan, self.metrics = records, plan, metrics
        self.model = records[0].model
        self.missing: list[Missing] = []

    def judged(self, progress: Progress) -> Judged:
        """Return the judgements in display units."""
        report = self._report(progress)
        if report is None:
            return Judged((), (), (), tuple(self.missing), ())
        return Judged(
            tuple(self._comparison(c, report) for c in report.comparisons),
            tuple(self._interaction(x) for x in report.interactions),
            tuple(self._controls(report)),
            tuple(self.missing),
            report.notes,
        )

    def _report(self, progress: Progress) -> Report | None:
        """Return what can be judged; what cannot is noted as missing."""
        left = self._with_baseline()
        while len(left) > 1:
            try:
                paths = [r.run.path for r in left]
                return compare_runs(paths, self.plan, self.metrics, progress)
            except BadRecords as error:
                lost = [r.place() for r in left if str(r.run.path) == error.where]
                lost = lost or [r.place() for r in left]
                for place in dict.fromkeys(lost):
                    self._lose(place, error.what)
                left = [r for r in left if r.place() not in lost]
        return None

    def _with_baseline(self) -> list[Record]:
        """Return the records of texts on which the planned baseline was scored."""
        baseline = self.plan.baseline
        there = {r.place() for r in self.records if not baseline or r.calibration == baseline}
        for place in dict.fromkeys(r.place() for r in self.records):
            if place not in there:
                self._lose(place, f"{baseline} was not scored on it")
        return [r for r in self.records if r.place() in there]

    def _lose(self, place: tuple[str, str, str], why: str) -> None:
        step = " ".join(filter(None, ("compare", *place)))
        self.missing.append(Missing(step, why, "", ()))

    def _places(self, title: str) -> tuple[str, str]:
        """Return task and text of what `compare` calls a text."""
        task, _, language = title.rpartition(" ")
        return (task, language) if self.records[0].task else ("", title)

    def _signatures(self, task: str, text: str, levels: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            r.signature
            for level in levels
            for r in self.records
            if (r.task, r.text, r.run.name()) == (task, text, level)
        )

    def _comparison(self, c: Comparison, report: Report) -> results.Comparison:
        q, metric = c.question, c.question.metric
        task, text = self._places(q.text)
        (a, kind), (b, _) = _level(q.a), _level(q.b)
        here = [r for r in report.controls if r.text == q.text]
        scaled = _Scaled(metric)
        return results.Comparison(
            model=self.model, text=text, task=task, type=kind, metric=metric.key,
            words=metric.words, unit=metric.unit, lower_is_better=metric.lower_is_better, a=a, b=b,
            estimate=scaled(c.estimate), low=scaled(c.low), high=scaled(c.high),
            p_value=c.p_value, p_adjusted=c.p_adjusted(), adjust=c.adjust, family=c.family,
            n_family=c.n_family, verdict=c.verdict(),
            margin=math.nan if q.margin is None else scaled(q.margin),
            p_equivalence=c.p_equivalence, detectable=scaled(c.detectable),
            noise=scaled(controls.noise(here, kind, metric.key, {a, b})),
            noise_multiple=c.noise_multiple,
            n=c.n, n_clusters=c.n_clusters, n_to_decide=c.n_to_decide,
            clusters_to_decide=c.clusters_to_decide,
            plain=sentences.plain(c), formal=sentences.formal(c),
            signatures=self._signatures(task, text, (q.a, q.b)),
        )  # fmt: skip

    def _interaction(self, x: Interaction) -> results.Interaction:
        metric, found = METRICS[x.metric], x.contrast
        scaled = _Scaled(metric)
        said = (x.a, x.b, x.type, metric, found, x.p_holm)
        return results.Interaction(
            self.model, x.task, x.type, x.metric, metric.unit, x.a, x.b, scaled(found.estimate),
            scaled(found.low), scaled(found.high), found.p_value, x.p_holm,
            sentences.plain_interaction(*said), sentences.formal_interaction(*said),
        )  # fmt: skip

    def _controls(self, report: Report) -> Iterator[results.Control]:
        for r in report.controls:
            metric, (task, text) = METRICS[r.metric], self._places(r.text)
            scaled = _Scaled(metric)
            yield results.Control(
                self.model, r.name, r.expected, text, task, r.type, r.metric, metric.unit,
                scaled(r.estimate), scaled(r.low), scaled(r.high), r.noise_multiple,
            )  # fmt: skip


class _Scaled:
    """Stored values in a metric's unit; what is unknown or unbounded is NaN."""

    def __init__(self, metric: Metric):
        self.scale = metric.scale

    def __call__(self, value: float) -> float:
        return value * self.scale if math.isfinite(value) else math.nan


def _level(name: str) -> tuple[str, str]:
    """Return calibration and type of what `compare` calls a level."""
    calibration, _, kind = name.rpartition(" ")
    return calibration, kind
