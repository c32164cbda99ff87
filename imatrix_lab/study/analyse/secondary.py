"""What stands beside the comparisons: predicted losses, similar imatrices, answers that flip."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from imatrix_lab.imatrix import distance, format
from imatrix_lab.imatrix.format import Imatrix
from imatrix_lab.records.runs import NO_IMATRIX
from imatrix_lab.report import results
from imatrix_lab.report.results import ALL_SAMPLES, Agreement, Prediction, Score, Similarity
from imatrix_lab.study.analyse.index import Grid, Record
from imatrix_lab.study.products import Made
from imatrix_lab.tasks import summary

FLIPS_MAX = 50
"""Answers that are kept with their text, of each pair of runs; counts are of all."""
_CALIBRATIONS_MIN = 3  # two are ranked alike or not by a coin toss


def predictions(made: Made, grid: Grid, scores: Sequence[Score]) -> list[Prediction]:
    """Return the predicted loss of each quant and language beside the divergence measured."""
    measured = {
        (s.model, s.calibration, s.sample, s.type, s.text): s.estimate
        for s in scores
        if s.metric == "kld_nats" and not s.task
    }
    found = []
    for p in made.losses:
        sample = ALL_SAMPLES if p.calibration == NO_IMATRIX else p.sample
        place = (p.model, p.calibration, sample, p.type, p.language)
        found.append(Prediction(*place, p.predicted_loss, measured.get(place, math.nan)))
    return sorted(found, key=lambda p: (
        grid.rank("model", p.model), grid.rank("text", p.language), grid.rank("type", p.type),
        grid.rank("calibration", p.calibration), p.sample,
    ))  # fmt: skip


def agreements(found: Sequence[Prediction]) -> list[Agreement]:
    """Return how well predictions rank the calibrations, each the mean of its samples.

    Spearman's rank correlation; NaN with fewer than three calibrations.
    """
    rows: dict[tuple[str, str, str], dict[str, list[Prediction]]] = {}
    for p in found:
        if math.isfinite(p.measured_kld_nats):
            here = rows.setdefault((p.model, p.type, p.language), {})
            here.setdefault(p.calibration, []).append(p)
    return [
        Agreement(
            *place,
            _spearman(
                [_mean([p.predicted_loss for p in those]) for those in here.values()],
                [_mean([p.measured_kld_nats for p in those]) for those in here.values()],
            ),
            len(here),
        )
        for place, here in rows.items()
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    if len(a) < _CALIBRATIONS_MIN or min(len(set(a)), len(set(b))) < 2:
        return math.nan
    from scipy import stats

    return float(stats.spearmanr(a, b).statistic)


def similarities(made: Made, grid: Grid) -> list[Similarity]:
    """Return the total variation between the first samples of every two calibrations of a model.

    The noise is that between samples of one language, the mean over pairs.
    """
    rows: list[Similarity] = []
    there = [i for i in made.imatrices if i.path is not None]
    for model in made.models:
        files: dict[str, list[tuple[Path, Imatrix]]] = {}
        languages = set()
        for i in sorted((i for i in there if i.model == model), key=lambda i: i.sample):
            assert i.path is not None
            files.setdefault(i.label, []).append((i.path, format.read(i.path)))
            languages |= {i.label} if i.kind == "language" else set()
        labels = sorted(files, key=lambda label: grid.rank("calibration", label))
        if len(labels) < 2:
            continue
        found = distance.compare([files[label][0] for label in labels], labels)
        pairs = [p for label in labels if label in languages
                 for p in itertools.combinations(files[label], 2)]  # fmt: skip
        noise = distance.noise_floor(pairs, found.tensors).overall("tv") if pairs else math.nan
        values = found.matrix("tv")
        rows += [
            Similarity(model, labels[i], labels[j], float(values[i, j]), noise)
            for i, j in found.pairs()
        ]
    return rows


def flips(
    grid: Grid, comparisons: Sequence[results.Comparison]
) -> tuple[list[results.Flip], list[results.FlipCount]]:
    """Return the answers on which a calibration and the baseline differ, in their first samples.

    Gained are items that the calibration has right (or more right) and the baseline has not.
    """
    first: dict[tuple[str, ...], Record] = {}
    for r in grid.items:
        first.setdefault((*r.place(), r.calibration, r.type), r)
    texts: list[results.Flip] = []
    counts: list[results.FlipCount] = []
    for c in comparisons:
        if not c.task or c.b != grid.baseline:
            continue
        one, other = (first[c.model, c.task, c.text, x, c.type] for x in (c.a, c.b))
        flips = summary.flips(one.run.path, other.run.path)
        place = (c.model, c.task, c.text, c.type, c.a, c.b)
        counts.append(results.FlipCount(*place, flips.n_items, flips.n_lost, flips.n_gained))
        texts += [
            dataclasses.replace(
                flip, model=c.model, task=c.task, language=c.text, type=c.type, a=c.a, b=c.b
            )
            for flip in flips.items[:FLIPS_MAX]
        ]
    return texts, counts
