"""What item records say: scores with intervals, and the answers on which two quants differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.records import parquet
from imatrix_lab.records import runs as compared
from imatrix_lab.records.parquet import Table
from imatrix_lab.records.runs import Run
from imatrix_lab.stats import clustered
from imatrix_lab.stats.clustered import Interval
from imatrix_lab.tasks import records
from imatrix_lab.tasks.scorers import translation
from imatrix_lab.tasks.scorers.translation import Quality

_COLUMNS = ("task", "language", "item_id", "cluster_id", "score", "prediction", "gold", "parsed",
            "tie", "cut", "error")  # fmt: skip


@dataclass(frozen=True)
class Score:
    """How one quant did on a task, or on a part of it, in a language.

    Attributes
    ----------
    score : mean over the items that did not fail, with an interval by cluster.
    n_unparsed : answers that could not be read; they score 0.
    n_ties : items whose best options were equally likely.
    n_cut : answers that were not at their end when they had as many tokens as they may.
    failed : items that failed, by kind; they are not in the mean.
    n_given, n_unique : rows of the data, and items after repeats were merged.
    quality : chrF++ and BLEU of all, for translations.
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
class Flip:
    """An item on which two quants differ; `prompt` and outputs are empty where not kept."""

    task: str
    language: str
    item_id: str
    gold: str
    a: str
    b: str
    score_a: float
    score_b: float
    prompt: str = ""
    output_a: str = ""
    output_b: str = ""


@dataclass(frozen=True)
class Flips:
    """Where two runs differ.

    Attributes
    ----------
    n_items : that both have, and neither failed.
    n_gained, n_lost : items on which the second is better, and worse.
    """

    items: tuple[Flip, ...]
    n_items: int
    n_gained: int
    n_lost: int


def scores(paths: Sequence[Path]) -> list[Score]:
    """Return the scores in files or folders of item records, part by part.

    Raises
    ------
    BadRecords : a file is damaged, or none has items.
    """
    found = [run for path in paths for run in compared.find(path) if run.kind == "item"]
    if not found:
        raise BadRecords("no records of tasks here", where=paths[0], fix="imatrix-lab task run")
    return [score for run in found for score in _scores(run)]


def _scores(run: Run) -> list[Score]:
    table = parquet.read(run.path, list(_COLUMNS))
    names = records.words(table, "task")
    parts = list(dict.fromkeys(names))
    whole = np.ones(len(table), bool)
    rows = [(part, np.array([name == part for name in names])) for part in parts]
    if len(parts) > 1:
        rows.append((str(run.signature["task"]["name"]), whole))
    return [_score(run, table, part, chosen) for part, chosen in rows]


def _score(run: Run, table: Table, part: str, chosen: np.ndarray) -> Score:
    values = table.array("score")
    good = chosen & np.isfinite(values)
    _, codes = np.unique(table.words("cluster_id").codes[good], return_inverse=True)
    sizes = np.bincount(codes)
    errors = [e for e, c in zip(records.words(table, "error"), chosen, strict=True) if c]
    task = run.signature["task"]
    return Score(
        part, str(task["language"]), str(run.signature["quant"]["name"]),
        _mean(np.bincount(codes, values[good]), sizes), int(good.sum()), len(sizes),
        int((~table.array("parsed")[good]).sum()), int(table.array("tie")[good].sum()),
        int(table.array("cut")[good].sum()),
        records.error_classes(errors), int(task["n_given"]), int(task["n_unique"]),
        _quality(table, good, str(task["language"])) if task["scorer"] == "translation" else None,
    )  # fmt: skip


def _mean(totals: np.ndarray, sizes: np.ndarray) -> Interval:
    """Return the mean over items with its interval, or none where every item failed."""
    if not len(sizes):
        return Interval(math.nan, math.nan, math.nan, math.nan, 0, 0, 0)
    return clustered.share(totals, sizes)


def _quality(table: Table, good: np.ndarray, language: str) -> Quality:
    said, golds = (
        [word for word, keep in zip(records.words(table, name), good, strict=True) if keep]
        for name in ("prediction", "gold")
    )
    return translation.corpus(said, golds, language)


def flips(path_a: Path, path_b: Path) -> Flips:
    """Return the items that one of two runs has right and the other has not, largest first.

    Raises
    ------
    UsageError : a folder, or several files.
    BadRecords : they were not asked the same.
    """
    both = [compared.find(path) for path in (path_a, path_b)]
    if any(len(found) != 1 or found[0].kind != "item" for found in both):
        raise UsageError("flips are between two files of item records")
    compared.require_comparable([both[0][0], both[1][0]])
    a, b = (_rows(found[0]) for found in both)
    shared = [key for key in a if key in b]
    if not shared:
        raise BadRecords("these runs have no item in common", where=path_b)
    found, n_items = [], 0
    for key in shared:
        one, other = a[key], b[key]
        if not (math.isfinite(one["score"]) and math.isfinite(other["score"])):
            continue
        n_items += 1
        if one["score"] != other["score"]:
            found.append(_flip(key, one, other))
    found.sort(key=lambda flip: -abs(flip.score_a - flip.score_b))
    gained = sum(flip.score_b > flip.score_a for flip in found)
    return Flips(tuple(found), n_items, gained, len(found) - gained)


def _rows(run: Run) -> dict[tuple[str, str, str], dict[str, Any]]:
    table = parquet.read(run.path)
    names = [n for n in (*_COLUMNS, "prompt", "output") if n in table.columns]
    columns = [
        records.words(table, n) if isinstance(table.columns[n], parquet.Coded)
        else table.array(n).tolist()
        for n in names
    ]  # fmt: skip
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return {(row["task"], row["language"], row["item_id"]): row for row in rows}


def _flip(key: tuple[str, str, str], a: dict[str, Any], b: dict[str, Any]) -> Flip:
    return Flip(
        *key, a["gold"], a["prediction"], b["prediction"], a["score"], b["score"],
        a.get("prompt", ""), a.get("output", ""), b.get("output", ""),
    )  # fmt: skip
