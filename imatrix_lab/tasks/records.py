"""Item records: Parquet files that `compare` reads, one a task, language and quant."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.core.files import replacing
from imatrix_lab.records import parquet
from imatrix_lab.records.parquet import Coded, Table
from imatrix_lab.tasks.items import Item
from imatrix_lab.tasks.scorers.score import Outcome


def write(
    path: Path,
    task: str,
    rows: Sequence[tuple[Item, Outcome]],
    signature: Mapping[str, Any],
    prompts: Mapping[str, str] | None = None,
    examples: str = "",
) -> None:
    """Write a file of records, whole or not at all.

    With `prompts`, by item, and the `examples` before each of them, these and the outputs are
    columns too.
    """
    columns: dict[str, np.ndarray | Coded] = {
        "task": coded([f"{task}/{i.part}" if i.part else task for i, _ in rows]),
        "language": coded([i.language for i, _ in rows]),
        "item_id": coded([i.id for i, _ in rows]),
        "cluster_id": coded([i.cluster for i, _ in rows]),
        "score": np.array([o.score for _, o in rows], np.float64),
        "prediction": coded([o.prediction for _, o in rows]),
        "gold": coded([o.gold for _, o in rows]),
        "parsed": np.array([o.parsed for _, o in rows], np.bool_),
        "tie": np.array([o.tie for _, o in rows], np.bool_),
        "cut": np.array([o.cut for _, o in rows], np.bool_),
        "error": coded([o.error for _, o in rows]),
    }
    if prompts is not None:
        columns["examples"] = coded([examples] * len(rows))
        columns["prompt"] = coded([prompts[i.id] for i, _ in rows])
        columns["output"] = coded([o.output for _, o in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        parquet.write(temporary, columns, signature)


def coded(words: Sequence[str]) -> Coded:
    """Return a column of words; what UTF-8 cannot hold is replaced."""
    clean = [word.encode("utf-8", "replace").decode() for word in words]
    places = {name: i for i, name in enumerate(dict.fromkeys(clean))}
    return Coded(np.array([places[word] for word in clean], np.int32), tuple(places))


def words(table: Table, name: str) -> list[str]:
    """Return a column of words, spelt out."""
    column = table.words(name)
    return [column.names[code] for code in column.codes]


def table_rows(table: Table) -> list[dict[str, Any]]:
    """Return a table row by row, words spelt out."""
    columns = [
        words(table, name) if isinstance(column, Coded) else column.tolist()
        for name, column in table.columns.items()
    ]
    return [dict(zip(table.columns, row, strict=True)) for row in zip(*columns, strict=True)]


def name_part(name: str) -> str:
    """Return a model's name as a part of a file's."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:40] or "model"


def error_classes(errors: Sequence[str]) -> dict[str, int]:
    """Return how many items failed, by kind: what is before the colon."""
    return dict(Counter(error.partition(":")[0] for error in errors if error))
