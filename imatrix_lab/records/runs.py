"""Files of records as runs: what each is, whether two may be compared, and their values."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.records import parquet

NO_IMATRIX = "no imatrix"
_MUST_AGREE = (
    "kind", "metrics_version", "toolchain", "text", "task", "protocol", "reference", "compute",
)  # fmt: skip
_MAY_DIFFER = ("text.label", "reference.name", "compute.threads")
"""Names that the user gave, and what changes no bit."""
_TOKEN_COLUMNS = ("doc_id", "window", "pos", "token")
_READS = {
    "kld_nats": ("kld",),
    "nll_nats": ("nll",),
    "top1_agreement": ("top1", "top1_ref"),
    "score": ("score",),
}
DEFAULT_METRICS = {"token": ("kld_nats", "nll_nats"), "item": ("score",)}


@dataclass(frozen=True)
class Run:
    """One quant scored on one text or set of items.

    Attributes
    ----------
    kind : token or item.
    calib : what its imatrix was calibrated on, or `NO_IMATRIX`.
    type : quant type.
    sample : sha256 of its imatrix; "" without.
    text : label of the text; "" for items, whose languages are in the file.
    """

    path: Path
    signature: dict[str, Any]
    kind: str
    calib: str
    type: str
    sample: str
    text: str

    def name(self) -> str:
        """Return the run in words: calibration and type."""
        return f"{self.calib} {self.type}".strip()

    def is_reference(self) -> bool:
        """Whether the reference was scored against itself."""
        quant, reference = (self.signature.get(k, {}).get("sha256") for k in ("quant", "reference"))
        return bool(quant) and quant == reference


def find(path: Path) -> list[Run]:
    """Return the runs of a file, or of a folder's ``*.parquet``.

    Raises
    ------
    BadRecords : there are none, or one cannot be read.
    """
    if not path.exists():
        raise BadRecords("no such file or folder", where=path, fix="check the path")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise BadRecords("this folder has no *.parquet", where=path, fix="score a quant first")
    return [_run(file) for file in files]


def _run(path: Path) -> Run:
    signature = parquet.read(path, []).signature
    kind = signature.get("kind")
    if kind not in DEFAULT_METRICS:
        raise BadRecords(f"records of kind {kind!r} cannot be compared", where=path)
    quant = signature.get("quant")
    if not isinstance(quant, dict) or not {"sha256", "type"} <= quant.keys():
        raise BadRecords("the signature does not say which quant this is", where=path)
    return Run(
        path=path,
        signature=signature,
        kind=kind,
        calib=quant.get("calibration") or NO_IMATRIX,
        type=quant["type"],
        sample=quant.get("imatrix_sha256") or "",
        text=signature.get("text", {}).get("label", "") if kind == "token" else "",
    )


def instrument(signature: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a signature that must agree for two runs to be compared, by name."""
    found = {}
    for field in _MUST_AGREE:
        value = signature.get(field)
        parts = {f"{field}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {}
        found.update(parts or {field: value})
    return {name: value for name, value in found.items() if name not in _MAY_DIFFER}


def differing(a: Run, b: Run) -> list[str]:
    """Return the fields of the two signatures that forbid comparing them."""
    one, other = instrument(a.signature), instrument(b.signature)
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def demand_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that must not be compared.

    Raises
    ------
    BadRecords : names the first field that differs.
    """
    for run in runs[1:]:
        if fields := differing(runs[0], run):
            values = [_value(r.signature, fields[0]) for r in (runs[0], run)]
            raise BadRecords(
                f"these must not be compared: {fields[0]} is {values[0]!r} in {runs[0].path}"
                f" and {values[1]!r} in {run.path}",
                where=run.path,
                fix="score both with the same llama.cpp, text, protocol and reference",
            )


def _value(signature: dict[str, Any], field: str) -> Any:
    outer, _, inner = field.partition(".")
    found = signature.get(outer)
    return found.get(inner) if inner and isinstance(found, dict) else found


@dataclass(frozen=True)
class Block:
    """The same tokens or items in several runs.

    Attributes
    ----------
    text : label of the text; language of the items.
    task : name of the items' benchmark; "" for tokens.
    names : of the clusters.
    codes : (n,), cluster of each value, numbered in order of appearance.
    values : by run's place in the list, then metric: (n,) float64.
    windows : (n,), window of each token; None for items.
    n_unmatched : items that not every run has.
    """

    text: str
    names: tuple[str, ...]
    codes: np.ndarray
    values: dict[int, dict[str, np.ndarray]]
    task: str = ""
    windows: np.ndarray | None = None
    n_unmatched: int = 0

    def title(self) -> str:
        """Return the block in words."""
        return " ".join(filter(None, (self.task, self.text)))


def blocks(runs: dict[int, Run], metrics: Sequence[str]) -> list[Block]:
    """Return the values of runs on one text (one block) or of items (a block a language).

    Raises
    ------
    BadRecords : they must not be compared, or did not score the same.
    UsageError : a metric that these records do not have.
    """
    members = list(runs.values())
    demand_comparable(members)
    known = ("score",) if members[0].kind == "item" else tuple(m for m in _READS if m != "score")
    if unknown := [m for m in metrics if m not in known]:
        raise UsageError(f"no metric {unknown[0]} in these records", fix=f"one of {known}")
    return _tokens(runs, metrics) if members[0].kind == "token" else _items(runs)


def _tokens(runs: dict[int, Run], metrics: Sequence[str]) -> list[Block]:
    wanted = dict.fromkeys((*_TOKEN_COLUMNS, *(c for m in metrics for c in _READS[m])))
    first: parquet.Table | None = None
    values: dict[int, dict[str, np.ndarray]] = {}
    for i, run in runs.items():
        table = parquet.read(run.path, list(wanted))
        if first is None:
            first = table
            names, codes = _numbered(table.words("doc_id"))
        elif not same_tokens(first, table):
            raise BadRecords(
                "these runs did not score the same tokens",
                where=run.path,
                fix="score again: one of them is incomplete",
            )
        values[i] = {m: _metric(table, m) for m in metrics}
    assert first is not None
    if not len(first):
        raise BadRecords("no tokens in these records", where=next(iter(runs.values())).path)
    windows = np.asarray(first.array("window"), np.int64)
    return [Block(next(iter(runs.values())).text, names, codes, values, windows=windows)]


def same_tokens(a: parquet.Table, b: parquet.Table) -> bool:
    """Return whether two files of token records scored the same tokens, in the same order."""
    if len(a) != len(b):
        return False
    one, other = a.words("doc_id"), b.words("doc_id")
    if one.names != other.names:
        if set(one.names) != set(other.names):
            return False
        place = {name: i for i, name in enumerate(one.names)}
        moved = np.array([place[name] for name in other.names])[other.codes]
    else:
        moved = other.codes
    return np.array_equal(one.codes, moved) and all(
        np.array_equal(a.array(c), b.array(c)) for c in _TOKEN_COLUMNS[1:]
    )


def _metric(table: parquet.Table, metric: str) -> np.ndarray:
    columns = [table.array(c) for c in _READS[metric]]
    found = columns[0] if len(columns) == 1 else columns[0] == columns[1]
    return found.astype(np.float64)


def _numbered(words: parquet.Coded) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the words that occur, in order of appearance, and codes for them."""
    present, first, inverse = np.unique(words.codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return tuple(words.names[present[i]] for i in order), rank[inverse]


def _spelt(words: parquet.Coded) -> list[str]:
    return [words.names[c] for c in words.codes]


def _items(runs: dict[int, Run]) -> list[Block]:
    """Join item records by task, language and item."""
    found: dict[int, dict[tuple[str, str, str], tuple[str, float]]] = {}
    for i, run in runs.items():
        table = parquet.read(run.path, ["task", "language", "item_id", "cluster_id", "score"])
        keys = list(zip(*(_spelt(table.words(c)) for c in ("language", "task", "item_id")),
                        strict=True))  # fmt: skip
        rows = zip(_spelt(table.words("cluster_id")), table.array("score").tolist(), strict=True)
        found[i] = dict(zip(keys, rows, strict=True))
        if len(found[i]) < len(keys):
            raise BadRecords("an item occurs twice in these records", where=run.path)
    every = set.union(*(set(f) for f in found.values()))
    shared = set.intersection(*(set(f) for f in found.values()))
    first = next(iter(runs))
    task = str(runs[first].signature.get("task", {}).get("name", ""))
    result = []
    for language in dict.fromkeys(key[0] for key in found[first]):
        keys = [k for k in found[first] if k[0] == language and k in shared]
        if not keys:
            continue
        groups = [found[first][k][0] for k in keys]
        names = tuple(dict.fromkeys(groups))
        place = {name: i for i, name in enumerate(names)}
        result.append(
            Block(
                text=language,
                task=task,
                names=names,
                codes=np.array([place[g] for g in groups]),
                values={i: {"score": np.array([f[k][1] for k in keys])} for i, f in found.items()},
                n_unmatched=sum(k[0] == language for k in every - shared),
            )
        )
    if not result:
        raise BadRecords("these runs have no item in common", where=runs[first].path)
    return result
