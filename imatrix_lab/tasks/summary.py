"""Item records read: scores with intervals, and the answers on which two quants differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.llamacpp import thoughts
from imatrix_lab.records import parquet, runs
from imatrix_lab.records.parquet import Table
from imatrix_lab.records.runs import Run
from imatrix_lab.report.results import Flip
from imatrix_lab.stats import clustered
from imatrix_lab.stats.clustered import Interval
from imatrix_lab.tasks import records
from imatrix_lab.tasks.scorers import translation
from imatrix_lab.tasks.scorers.translation import Quality

_COLUMNS = ("task", "cluster_id", "score", "prediction", "gold", "parsed", "tie", "cut", "error")


@dataclass(frozen=True)
class TaskScore:
    """The score of one quant on a task, or on a part of it, in a language.

    `score` is the mean over the items that did not fail, with an interval by cluster; answers that
    could not be read (`n_unparsed`) score 0. `failed` counts items by kind of failure. Of `n_given`
    rows, `n_unique` are left after repeats were merged.
    """

    task: str
    language: str
    quant: str
    score: Interval
    n_items: int
    n_clusters: int
    n_unparsed: int
    n_ties: int
    n_cut: int
    failed: dict[str, int]
    n_given: int
    n_unique: int
    quality: Quality | None = None


@dataclass(frozen=True)
class Flips:
    """Where two runs differ, of the items that neither failed; the second gained and lost."""

    items: tuple[Flip, ...]
    n_items: int
    n_gained: int
    n_lost: int


def scores(paths: Sequence[Path]) -> list[TaskScore]:
    """Return the scores in files or folders of item records, part by part."""
    item_runs = [run for path in paths for run in runs.find(path) if run.kind == "item"]
    if not item_runs:
        raise BadRecords(
            "no records of tasks here",
            where=paths[0],
            fix="imatrix-lab task run TASK --langs nb --quant FILE",
        )
    results: list[TaskScore] = []
    for run in item_runs:
        table = parquet.read(run.path, list(_COLUMNS))
        names = np.array(records.words(table, "task"))
        parts = {part: names == part for part in dict.fromkeys(names.tolist())}
        if len(parts) > 1:
            parts[str(run.signature["task"]["name"])] = np.ones(len(table), bool)
        results += [_score(run, table, part, chosen) for part, chosen in parts.items()]
    return results


def _score(run: Run, table: Table, part: str, chosen: np.ndarray) -> TaskScore:
    values = table.array("score")
    good = chosen & np.isfinite(values)
    _, codes = np.unique(table.words("cluster_id").codes[good], return_inverse=True)
    sizes = np.bincount(codes)
    task = run.signature["task"]
    quality = None
    if task["scorer"] == "translation":
        texts, golds = (_words(table, name, good) for name in ("prediction", "gold"))
        quality = translation.corpus(texts, golds, str(task["language"]))
    mean = Interval(math.nan, math.nan, math.nan, math.nan, 0, 0, 0)
    if len(sizes):
        mean = clustered.share(np.bincount(codes, values[good]), sizes)
    unparsed, ties, cut = ~table.array("parsed"), table.array("tie"), table.array("cut")
    return TaskScore(
        task=part, language=str(task["language"]), quant=str(run.signature["quant"]["name"]),
        score=mean, n_items=int(good.sum()), n_clusters=len(sizes),
        n_unparsed=int(unparsed[good].sum()), n_ties=int(ties[good].sum()),
        n_cut=int(cut[good].sum()), failed=records.error_classes(_words(table, "error", chosen)),
        n_given=int(task["n_given"]), n_unique=int(task["n_unique"]), quality=quality,
    )  # fmt: skip


def _words(table: Table, name: str, chosen: np.ndarray) -> list[str]:
    return [word for word, is_in in zip(records.words(table, name), chosen, strict=True) if is_in]


def flips(path_a: Path, path_b: Path) -> Flips:
    """Return the items that one of two runs has right and the other has not, largest first."""
    both = [*runs.find(path_a), *runs.find(path_b)]
    if len(both) != 2 or any(run.kind != "item" for run in both):
        fix = "name two files that task run wrote"
        raise UsageError("flips are between two files of item records", fix=fix)
    runs.require_comparable(both)
    rows_a, rows_b = (
        {(row["task"], row["language"], row["item_id"]): row for row in rows}
        for rows in (records.table_rows(parquet.read(run.path)) for run in both)
    )
    pairs = [(row, rows_b[key]) for key, row in rows_a.items() if key in rows_b]
    if not pairs:
        raise BadRecords("these runs have no item in common", where=path_b)
    pairs = [(a, b) for a, b in pairs if math.isfinite(a["score"] + b["score"])]
    items = [_flip(both[0], both[1], a, b) for a, b in pairs if a["score"] != b["score"]]
    items.sort(key=lambda flip: -abs(flip.score_a - flip.score_b))
    n_gained = sum(flip.score_b > flip.score_a for flip in items)
    return Flips(tuple(items), len(pairs), n_gained, len(items) - n_gained)


def _flip(run_a: Run, run_b: Run, a: dict[str, Any], b: dict[str, Any]) -> Flip:
    is_choice = run_a.signature["task"]["scorer"] == "choice"  # whose output is likelihoods
    output_a, output_b = (
        row["prediction"]
        if is_choice
        else thoughts.answer(row.get("output", "")) or row["prediction"]
        for row in (a, b)
    )
    name_a, name_b = (str(run.signature["quant"]["name"]) for run in (run_a, run_b))
    return Flip(
        model="", task=a["task"], language=a["language"], item_id=a["item_id"], a=name_a, b=name_b,
        type=run_a.type if run_a.type == run_b.type else "", prompt=a.get("prompt", ""),
        gold=a["gold"], output_a=output_a, output_b=output_b, score_a=a["score"],
        score_b=b["score"],
    )  # fmt: skip
