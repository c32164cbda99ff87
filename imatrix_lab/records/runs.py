"""Files of records as runs: what each measured, which may be compared, and their values."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.records import parquet

NO_IMATRIX = "no imatrix"
_MUST_AGREE = ["kind", "metrics_version", "toolchain", "text", "task", "protocol"]
_MUST_AGREE += ["reference", "compute"]
_MAY_DIFFER = ("text.label", "reference.name", "compute.threads")
"""Names given by the user, and what changes no result."""
_TOKEN_COLUMNS = ("doc_id", "window", "pos", "token")
_READS = {
    "kld_nats": ("kld",),
    "nll_nats": ("nll",),
    "top1_agreement": ("top1", "top1_ref"),
    "score": ("score",),
}
_SIGNATURE: dict[str, dict[str, Any]] = {
    "quant": {"sha256": str, "type": str, "name": str, "calibration": str, "imatrix_sha256": str,
              "size_bytes": int, "bits_per_weight": (int, float)},
    "reference": {"sha256": str, "name": str}, "text": {"label": str}, "task": {"name": str},
    "protocol": {"divergence": str}, "toolchain": {"commit": str, "backend": str},
}  # fmt: skip
"""Types of what is read of a signature."""
SCORE = "imatrix-lab score run --reference MODEL --quant FILE --text nb"
"""What makes records of tokens."""
DEFAULT_METRICS = {"token": ("kld_nats", "nll_nats"), "item": ("score",)}


@dataclass(frozen=True)
class Run:
    """One quant scored on one text or set of items; `kind` is token or item.

    `calib`: what its imatrix was calibrated on, or `NO_IMATRIX`. `sample`: sha256 of its imatrix,
    "" without. `text`: label of the text, "" for items, whose languages are in the file.
    """

    path: Path
    signature: dict[str, Any]
    kind: str
    calib: str
    type: str
    sample: str
    text: str
    size_bytes: int = 0

    def name(self) -> str:
        """Return calibration and type."""
        return f"{self.calib} {self.type}".strip()

    def title(self) -> str:
        """Return its text, or its task and the language of that."""
        if self.kind == "token":
            return self.text
        task = self.signature.get("task") or {}
        return " ".join(str(task[key]) for key in ("name", "language") if task.get(key))

    def is_reference(self) -> bool:
        """Whether the reference was scored against itself."""
        quant, reference = (self.signature.get(k, {}).get("sha256") for k in ("quant", "reference"))
        return bool(quant) and quant == reference


def find(path: Path) -> list[Run]:
    """Return the runs of a file, or of a folder's ``*.parquet``; BadRecords: there are none."""
    if not path.exists():
        raise BadRecords("no such file or folder", where=path, fix="check the path")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise BadRecords("this folder has no *.parquet", where=path, fix=SCORE)
    return [_run(file) for file in files]


def _run(path: Path) -> Run:
    signature = parquet.read(path, []).signature
    kind = signature.get("kind")
    if not (isinstance(kind, str) and kind in DEFAULT_METRICS):
        raise BadRecords(f"records of kind {kind!r:.40} cannot be compared", where=path, fix=SCORE)
    quant = signature.get("quant")
    if not isinstance(quant, dict) or not {"sha256", "type"} <= quant.keys():
        raise BadRecords("the signature does not say which quant this is", where=path)
    for table, kinds in _SIGNATURE.items():
        part = signature.get(table) or {}
        if not isinstance(part, dict):
            raise BadRecords(f"the signature's {table} is no table", where=path)
        for key, types in kinds.items():
            if not isinstance(part.get(key), (types, type(None))):
                what = f"the signature's {table}.{key} is {part[key]!r:.40}, which makes no sense"
                raise BadRecords(what, where=path)
    return Run(
        path=path,
        signature=signature,
        kind=kind,
        calib=quant.get("calibration") or NO_IMATRIX,
        type=quant["type"],
        sample=quant.get("imatrix_sha256") or "",
        text=(signature.get("text") or {}).get("label") or "" if kind == "token" else "",
        size_bytes=quant.get("size_bytes") or 0,
    )


def instrument(signature: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a signature that must agree for two runs to be compared, by name."""
    fields = {}
    for field in _MUST_AGREE:
        value = signature.get(field)
        parts = {f"{field}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {}
        fields.update(parts or {field: value})
    return {name: value for name, value in fields.items() if name not in _MAY_DIFFER}


def differing(a: Run, b: Run) -> list[str]:
    """Return the fields of the two signatures that forbid comparing them."""
    x, y = instrument(a.signature), instrument(b.signature)
    return [name for name in {**x, **y} if x.get(name) != y.get(name)]


def require_comparable(runs: Sequence[Run]) -> None:
    """Raise BadRecords with the first field that differs, if runs must not be compared."""
    first = runs[0]
    for run in runs[1:]:
        if fields := differing(first, run):
            field = next((f for f in ("task.name", "task.language") if f in fields), fields[0])
            a, b = (instrument(r.signature).get(field) for r in (first, run))
            on_items = "run both on the same task, language and options, with the same llama.cpp"
            on_text = "score both with the same llama.cpp, text, protocol and reference"
            raise BadRecords(
                f"these must not be compared: {field} is {a!r} in {first.path} and {b!r} in"
                f" {run.path}",
                where=run.path,
                fix=on_items if first.kind == "item" else on_text,
            )


@dataclass(frozen=True)
class Block:
    """The same tokens or items in several runs.

    `text`: label of the text, or language of the items; `task`: their benchmark, "" for tokens.
    `names`: of the clusters; `codes` (n,): cluster of each value, numbered in order of appearance.
    `values`: by run's place in the list, then metric: (n,) float64. `windows`: (n,), of each token;
    None for items. `n_unmatched`: items that not every run has.
    """

    text: str
    names: tuple[str, ...]
    codes: np.ndarray
    values: dict[int, dict[str, np.ndarray]]
    task: str = ""
    windows: np.ndarray | None = None
    n_unmatched: int = 0

    def title(self) -> str:
        """Return task and text."""
        return " ".join(filter(None, (self.task, self.text)))


def blocks(runs: dict[int, Run], metrics: Sequence[str]) -> list[Block]:
    """Return the values of runs on one text (one block) or of items (a block a language).

    Raises BadRecords: they must not be compared, or did not score the same; UsageError: no such
    metric.
    """
    members = list(runs.values())
    require_comparable(members)
    known = ("score",) if members[0].kind == "item" else tuple(m for m in _READS if m != "score")
    if unknown := [m for m in metrics if m not in known]:
        raise UsageError(
            f"no metric {unknown[0]} in these records", fix=f"one of: {', '.join(known)}"
        )
    return _tokens(runs, metrics) if members[0].kind == "token" else _items(runs)


def _tokens(runs: dict[int, Run], metrics: Sequence[str]) -> list[Block]:
    columns = list(dict.fromkeys((*_TOKEN_COLUMNS, *(c for m in metrics for c in _READS[m]))))
    first = next(iter(runs.values()))
    tokens = parquet.read(first.path, list(_TOKEN_COLUMNS))
    if not len(tokens):
        raise BadRecords("no tokens in these records", where=first.path, fix="score more text")
    values: dict[int, dict[str, np.ndarray]] = {}
    for i, run in runs.items():
        table = parquet.read(run.path, columns)
        if not same_tokens(tokens, table):
            raise BadRecords(
                "these runs did not score the same tokens",
                where=run.path,
                fix="score again: one of them is incomplete",
            )
        for metric in metrics:
            array, *others = map(table.array, _READS[metric])
            scores = array == others[0] if others else array
            values.setdefault(i, {})[metric] = scores.astype(np.float64)
    names, codes = _numbered(tokens.words("doc_id"))
    windows = np.asarray(tokens.array("window"), np.int64)
    return [Block(first.text, names, codes, values, windows=windows)]


def same_tokens(a: parquet.Table, b: parquet.Table) -> bool:
    """Return whether two files of token records scored the same tokens, in the same order."""
    ids_a, ids_b = a.words("doc_id"), b.words("doc_id")
    if len(a) != len(b) or set(ids_a.names) != set(ids_b.names):
        return False
    places = {name: i for i, name in enumerate(ids_a.names)}
    codes = np.array([places[name] for name in ids_b.names], np.int32)[ids_b.codes]
    return np.array_equal(ids_a.codes, codes) and all(
        np.array_equal(a.array(c), b.array(c)) for c in _TOKEN_COLUMNS[1:]
    )


def _numbered(words: parquet.Coded) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the words that occur, in order of appearance, and codes for them."""
    present, first, inverse = np.unique(words.codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return tuple(words.names[present[i]] for i in order), np.argsort(order)[inverse]


def _items(runs: dict[int, Run]) -> list[Block]:
    items = {i: _scores(run) for i, run in runs.items()}
    every = set.union(*(set(scores) for scores in items.values()))
    shared = set.intersection(*(set(scores) for scores in items.values()))
    first_run, first = next(iter(runs.values())), next(iter(items.values()))
    task = str(first_run.signature.get("task", {}).get("name", ""))
    joined = []
    for language in dict.fromkeys(key[0] for key in first):
        keys = [key for key in first if key[0] == language and key in shared]
        if not keys:
            continue
        clusters = [first[key][0] for key in keys]
        names = list(dict.fromkeys(clusters))
        places = {name: i for i, name in enumerate(names)}
        joined.append(
            Block(
                text=language,
                task=task,
                names=tuple(names),
                codes=np.array([places[c] for c in clusters]),
                values={i: {"score": np.array([s[k][1] for k in keys])} for i, s in items.items()},
                n_unmatched=sum(key[0] == language for key in every - shared),
            )
        )
    if not joined:
        raise BadRecords("these runs have no item in common", where=first_run.path)
    return joined


def _scores(run: Run) -> dict[tuple[str, str, str], tuple[str, float]]:
    """Return cluster and score of each item, by language, task and id."""
    table = parquet.read(run.path, ["task", "language", "item_id", "cluster_id", "score"])
    language, task, item_id, cluster = (
        [column.names[code] for code in column.codes]
        for column in map(table.words, ("language", "task", "item_id", "cluster_id"))
    )
    rows = zip(cluster, table.array("score").tolist(), strict=True)
    scores = dict(zip(zip(language, task, item_id, strict=True), rows, strict=True))
    if len(scores) < len(table):
        raise BadRecords("an item occurs twice in these records", where=run.path)
    return scores
