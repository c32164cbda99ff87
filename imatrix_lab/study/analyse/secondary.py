"""Secondary results: predicted losses, similar imatrices, answers that flip."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.imatrix import distance, format
from imatrix_lab.report import results
from imatrix_lab.report.results import Agreement, Prediction, Score, Similarity
from imatrix_lab.study.analyse.index import Index, Products, RecordFile
from imatrix_lab.tasks import summary

FLIPS_MAX = 50  # answers that are kept with their text, of each pair of runs; counts are of all
_CALIBRATIONS_MIN = 3  # two are ranked alike or not by a coin toss


def predictions(products: Products, index: Index, scores: Sequence[Score]) -> list[Prediction]:
    """Return the predicted loss of each quant and language beside the divergence measured."""
    measured = {
        (s.model, s.calibration, s.sample, s.type, s.text): s.estimate
        for s in scores
        if s.metric == "kld_nats" and not s.task
    }
    rows = []
    for p in products.predictions:
        kld = measured.get((p.model, p.calibration, p.sample, p.type, p.language), math.nan)
        rows.append(replace(p, measured_kld_nats=kld))
    factors = {"model": "model", "text": "language", "type": "type", "calibration": "calibration"}
    return sorted(rows, key=partial(index.order, **factors))


def agreements(rows: Sequence[Prediction]) -> list[Agreement]:
    """Return how well predictions rank the calibrations, each the mean of its samples.

    Spearman's rank correlation; NaN with fewer than three calibrations. Then how well predicted
    divergences rank all files of a model on a language.
    """
    places: dict[tuple[str, str, str], dict[str, list[Prediction]]] = {}
    for p in rows:
        if math.isfinite(p.measured_kld_nats):
            calibrations = places.setdefault((p.model, p.type, p.language), {})
            calibrations.setdefault(p.calibration, []).append(p)
    agreements = []
    for place, calibrations in places.items():
        samples = list(calibrations.values())
        predicted = [fmean(p.predicted_loss for p in each) for each in samples]
        measured = [fmean(p.measured_kld_nats for p in each) for each in samples]
        agreements.append(Agreement(*place, _spearman(predicted, measured), len(samples)))
    everything: dict[tuple[str, str], list[Prediction]] = {}
    for p in rows:
        if math.isfinite(p.measured_kld_nats + p.predicted_kld_nats):
            everything.setdefault((p.model, p.language), []).append(p)
    for (model, language), known in everything.items():
        klds = [p.predicted_kld_nats for p in known], [p.measured_kld_nats for p in known]
        agreements.append(Agreement(model, "", language, _spearman(*klds), len(known)))
    return agreements


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    if len(a) < _CALIBRATIONS_MIN or min(len(set(a)), len(set(b))) < 2:
        return math.nan
    from scipy import stats

    return float(stats.spearmanr(a, b).statistic)


def similarities(products: Products, index: Index) -> list[Similarity]:
    """Return the total variation between the first samples of every two calibrations of a model.

    The noise is that between samples of one language, the mean over pairs.
    """
    rows: list[Similarity] = []
    for model in products.models:
        languages, files = set[str](), dict[str, list[tuple[Path, format.Imatrix]]]()
        for c in sorted(products.calibrations, key=lambda c: c.sample):
            path = products.imatrices.get(c.imatrix_sha256)
            if c.model == model and path:
                files.setdefault(c.label, []).append((path, format.read(path)))
                languages |= {c.label} if c.kind == "language" else set()
        labels = sorted(files, key=lambda label: index.rank("calibration", label))
        if len(labels) < 2:
            continue
        distances = distance.compare([files[label][0] for label in labels], labels)
        samples = [files[label] for label in labels if label in languages]
        pairs = [pair for each in samples for pair in itertools.combinations(each, 2)]
        noise = distance.noise_floor(pairs, distances.tensors).overall("tv") if pairs else math.nan
        values = distances.matrix("tv")
        for i, j in distances.pairs():
            rows.append(Similarity(model, labels[i], labels[j], float(values[i, j]), noise))
    return rows


def activations(products: Products, index: Index) -> list[results.Activations]:
    """Return how large what matrices read is in each language, by role and layer."""
    rows: list[results.Activations] = []
    first = [c for c in products.calibrations if c.kind == "language" and c.sample == 1]
    for c in sorted(first, key=lambda c: index.order(c, model="model", calibration="label")):
        path = products.imatrices.get(c.imatrix_sha256)
        for role, layers in (_inputs(format.read(path)) if path else {}).items():
            n = max(layers) + 1
            nothing = np.full(3, math.nan)
            columns = np.array([layers.get(layer, nothing) for layer in range(n)]).T.tolist()
            rows.append(results.Activations(c.model, c.label, role, *map(tuple, columns)))
    return rows


def _inputs(imatrix: format.Imatrix) -> dict[str, dict[int, NDArray[np.float64]]]:
    """Return median, 99th percentile and largest root mean square of columns, by role and layer.

    Matrices that read the same input have the same sums: the first of them stands for all.
    """
    roles: dict[str, dict[int, NDArray[np.float64]]] = {}
    seen: dict[tuple[int, bytes], str] = {}
    for name, entry in imatrix.entries.items():
        layer, role = format.layer_and_role(name)
        if layer is None or seen.setdefault((layer, entry.sums.tobytes()), role) != role:
            continue
        hit = entry.counts > 0
        squares = entry.sums.reshape(len(hit), -1)[hit].sum(axis=0) / max(entry.counts.sum(), 1.0)
        levels = np.quantile(np.sqrt(squares), (0.5, 0.99, 1.0))
        roles.setdefault(role, {})[layer] = levels
    return roles


def flips(
    index: Index, comparisons: Sequence[results.Comparison]
) -> tuple[list[results.Flip], list[results.FlipCount]]:
    """Return the answers on which a calibration and the baseline differ, in their first samples.

    Gained are items that the calibration has right (or more right) and the baseline has not.
    """
    first: dict[tuple[str, ...], RecordFile] = {}
    for r in index.items:
        first.setdefault((*r.place(), r.calibration, r.type), r)
    texts, counts = list[results.Flip](), list[results.FlipCount]()
    for c in comparisons:
        if not c.task or c.b != index.baseline:
            continue
        a, b = (first[c.model, c.task, c.text, x, c.type] for x in (c.a, c.b))
        flips = summary.flips(a.run.path, b.run.path)
        place = (c.model, c.task, c.text, c.type, c.a, c.b)
        counts.append(results.FlipCount(*place, flips.n_items, flips.n_lost, flips.n_gained))
        own: dict[str, Any] = {key: getattr(c, key) for key in ("model", "task", "type", "a", "b")}
        texts += [replace(flip, language=c.text, **own) for flip in flips.items[:FLIPS_MAX]]
    return texts, counts
