"""What records say of the files of a card: each on each text, and beside the standard mixes."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.compare.compare import compare_runs
from imatrix_lab.compare.design import ComparisonPlan
from imatrix_lab.compare.sizes import APART_MAX
from imatrix_lab.core import config
from imatrix_lab.core.progress import Progress, Silent
from imatrix_lab.errors import BadRecords
from imatrix_lab.llamacpp import size_types
from imatrix_lab.records import runs
from imatrix_lab.records.runs import Run
from imatrix_lab.records.summary import Summary, summaries
from imatrix_lab.stats import equivalence
from imatrix_lab.stats.multiplicity import holm
from imatrix_lab.types import NOT_FOR_USE


@dataclass(frozen=True)
class Against:
    """A file beside a standard mix of its size: the difference of their KLD, nats a token.

    The difference is the file's less the mix's, paired by document; p is adjusted (Holm) for all
    that stand in one card, and the verdict is on the file.
    """

    name: str
    size_bytes: int
    sha256: str
    estimate: float
    low: float
    high: float
    p_adjusted: float
    verdict: str


@dataclass(frozen=True)
class Scored:
    """One file on one text; `others`: standard mixes of the same size, on the same tokens."""

    file: str
    size_bytes: int
    summary: Summary
    others: tuple[Against, ...] = ()


@dataclass(frozen=True)
class Scores:
    """Every text that the files of a card were scored on, and other files on the same texts."""

    files: tuple[Scored, ...] = ()
    standards: tuple[Scored, ...] = ()

    def texts(self) -> list[str]:
        """Return the labels of the texts."""
        return list(dict.fromkeys(s.summary.text for s in self.files))

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values, signatures included."""
        return dict(config.plain(self))


def of_records(
    paths: Sequence[Path], names: Mapping[str, str], model_sha256: str, progress: Progress
) -> Scores:
    """Return what records say of files.

    Parameters
    ----------
    paths : files of records, or folders of them.
    names : the files' names by sha256.
    model_sha256 : of the original; records against another reference are left out. "": any.

    Raises BadRecords: no records, or none of these files.
    """
    every = [run for path in paths for run in runs.find(path) if run.kind == "token"]
    alike = [r for r in every if model_sha256 in ("", r.signature["reference"]["sha256"])]
    if n := len(every) - len(alike):
        progress.say(f"note: {n} records are against another original, and left out")
    own = [run for run in alike if run.signature["quant"]["sha256"] in names]
    if not own:
        what = "none of these records are of the files"
        raise BadRecords(what, where=paths[0] if paths else None, fix=runs.SCORE)
    rivals = {run.path: [r for r in alike if _is_standard_of(r, run)] for run in own}
    against = _against(rivals)
    files = tuple(
        dataclasses.replace(
            _scored(run, names[run.signature["quant"]["sha256"]]), others=against[run.path]
        )
        for run in own
    )
    others = {r.path: r for group in rivals.values() for r in group}
    standards = (r for r in others.values() if r.signature["quant"]["sha256"] not in names)
    return Scores(
        tuple(sorted(files, key=lambda s: (s.file, s.summary.text))),
        tuple(_scored(run, run.name()) for run in standards),
    )


def _scored(run: Run, name: str) -> Scored:
    return Scored(name, run.size_bytes, summaries([run.path])[0])


def _is_standard_of(other: Run, run: Run) -> bool:
    """Whether a run is of a standard mix as large as another run's file, on the same tokens."""
    sizes = sorted((run.size_bytes, other.size_bytes))
    return (
        not size_types.is_size(other.type)
        and other.type not in NOT_FOR_USE
        and other.signature["quant"]["sha256"] != run.signature["quant"]["sha256"]
        and 0 < sizes[1] <= (1 + APART_MAX) * sizes[0]
        and not runs.differing(run, other)
    )


def _against(rivals: Mapping[Path, Sequence[Run]]) -> dict[Path, tuple[Against, ...]]:
    """Return the comparisons of each file of records, p adjusted over all of them."""
    pairs = [(path, other) for path, others in rivals.items() for other in others]
    plan = ComparisonPlan(adjust="none")
    rows = [
        compare_runs([path, other.path], plan, ("kld_nats",), Silent()).comparisons[0]
        for path, other in pairs
    ]
    adjusted = holm(np.array([c.p_value for c in rows])) if rows else ()
    result: dict[Path, tuple[Against, ...]] = dict.fromkeys(rivals, ())
    for (path, other), c, p in zip(pairs, rows, adjusted, strict=True):
        verdict = equivalence.verdict(c.estimate, float(p), None, lower_is_better=True)
        sha256 = other.signature["quant"]["sha256"]
        row = Against(
            other.name(), other.size_bytes, sha256, c.estimate, c.low, c.high, float(p), verdict
        )
        result[path] += (row,)
    return result
