"""What records say of the systems that people vote on: divergence and scores of tasks, paired."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from imatrix_lab.errors import BadRecords
from imatrix_lab.publish.preference.pack import Key
from imatrix_lab.records import runs
from imatrix_lab.records.runs import Run
from imatrix_lab.stats import comparison
from imatrix_lab.stats.comparison import Comparison, Question
from imatrix_lab.stats.metrics import METRICS

_METRIC = {"token": "kld_nats", "item": "score"}
SEED = 0


@dataclass(frozen=True)
class Measure:
    """A measure of two systems on a text or task, in its unit; `difference` is A less B."""

    a: str
    b: str
    text: str
    words: str
    unit: str
    value_a: float
    value_b: float
    difference: float
    std_error: float
    low: float
    high: float
    verdict: str
    n: int
    n_clusters: int


def _measure(c: Comparison) -> Measure:
    metric = c.question.metric
    return Measure(
        a=c.question.a,
        b=c.question.b,
        text=c.question.text,
        words=metric.words,
        unit=metric.unit,
        value_a=metric.scale * c.mean_a,
        value_b=metric.scale * c.mean_b,
        difference=metric.scale * c.estimate,
        std_error=metric.scale * c.std_error,
        low=metric.scale * c.low,
        high=metric.scale * c.high,
        verdict=c.verdict(),
        n=c.n,
        n_clusters=c.n_clusters,
    )


def compare(paths: Sequence[Path], key: Key) -> tuple[Measure, ...]:
    """Return each measure of each two systems that records of both are found of.

    The original that quants were scored against diverges by 0 from itself.

    Raises BadRecords: no records of these systems, or some that cannot be compared.
    """
    names = {str(system["sha256"]): name for name, system in key.systems.items()}
    by_text: dict[str, dict[str, Run]] = {}
    for run in (run for path in paths for run in runs.find(path)):
        if name := names.get(str(run.signature["quant"]["sha256"])):
            text = run.text if run.kind == "token" else str(run.signature.get("task"))
            by_text.setdefault(f"{run.kind} {text}", {})[name] = run
    compared = [_measure(c) for group in by_text.values() for c in _group(group, key, names)]
    if paths and not compared:
        what = "no records of two of the models that are compared"
        raise BadRecords(what, where=paths[0], fix=runs.SCORE)
    return tuple(compared)


def _group(group: dict[str, Run], key: Key, names: dict[str, str]) -> Iterator[Comparison]:
    some = next(iter(group.values()))
    original = names.get(str(some.signature.get("reference", {}).get("sha256")), "")
    metric = _METRIC[some.kind]
    for a, b in combinations(sorted({*group, original} - {""}), 2):
        members = {i: group[name] for i, name in enumerate((a, b)) if name in group}
        for block in runs.blocks(members, (metric,)):
            n = len(block.codes)
            values_a, values_b = (
                block.values[i][metric] if i in members else np.zeros(n) for i in range(2)
            )
            labels = [str(key.systems[name]["name"]) for name in (a, b)]
            question = Question(labels[0], labels[1], block.title(), METRICS[metric])
            try:
                yield comparison.compare(
                    question, (values_a, values_b), block.codes, np.random.default_rng(SEED),
                    windows=block.windows,
                )  # fmt: skip
            except ValueError as error:
                where = next(iter(members.values())).path
                raise BadRecords(str(error), where=where, fix="score more text") from error
