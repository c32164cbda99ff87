"""What a study made; its files of records by model, calibration, sample, type, text and task."""

import hashlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imatrix_lab.core.files import canonical_json
from imatrix_lab.errors import BadRecords
from imatrix_lab.records import runs
from imatrix_lab.records.runs import NO_IMATRIX, Run
from imatrix_lab.report.results import (
    ALL_SAMPLES,
    Calibration,
    Missing,
    Prediction,
    Preference,
    Quant,
    TensorTypes,
    Times,
)
from imatrix_lab.study.calibrations import mixtures
from imatrix_lab.study.kinds import kinds
from imatrix_lab.study.recipe import NONE, Recipe
from imatrix_lab.types import Model


@dataclass(frozen=True)
class Products:
    """Everything a study made: models by label, imatrices (those whose file exists) by sha256.

    Predictions are without what was measured; commands are those that repeat the study. Types of
    tensors are of the first samples, where types were chosen; `notes` are of the votes.
    """

    recipe: Recipe
    models: dict[str, Model]
    calibrations: tuple[Calibration, ...]
    imatrices: dict[str, Path]
    quants: tuple[Quant, ...]
    predictions: tuple[Prediction, ...]
    token_records: tuple[Path, ...]
    item_records: tuple[Path, ...]
    missing: tuple[Missing, ...]
    times: Times
    commands: tuple[str, ...]
    tensor_types: tuple[TensorTypes, ...] = ()
    preferences: tuple[Preference, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecordFile:
    """A file of records; calibration and type are empty for the original.

    Samples count from 1; `ALL_SAMPLES` without an imatrix, and where all went into one. `text` is a
    text's label, or the language of the task; `signature` is a key of `Index.signatures`.
    """

    run: Run
    model: str
    calibration: str
    sample: int
    type: str
    text: str
    task: str
    signature: str

    def place(self) -> tuple[str, str, str]:
        """Return what records that may be compared share."""
        return self.model, self.task, self.text


class Index:
    """A study's records in an order that does not depend on that of the files.

    `tokens` and `items` are by model, text, calibration, type and sample; `baseline` is the label
    of the calibration that others are compared with.
    """

    def __init__(self, products: Products):
        recipe = products.recipe
        labels = {NONE: NO_IMATRIX, **{text: m.label for text, m in mixtures(recipe).items()}}
        texts = recipe.calibration.texts
        self.baseline = labels[recipe.comparison.baseline or texts[0]]
        scored = [text.partition("=")[0] for text in recipe.evaluation.texts]
        self._ranks = {
            "model": list(products.models),
            "task": ["", *(Path(task.name).stem for task in recipe.tasks)],
            "text": [*scored, *(code for task in recipe.tasks for code in task.languages)],
            "calibration": ["", *(labels[text] for text in texts)],
            "type": ["", *(kind.label for kind in kinds(recipe))],
        }
        self.signatures: dict[str, dict[str, Any]] = {}
        self._quants = {q.sha256: q for q in products.quants}
        self._models = {m.sha256: label for label, m in products.models.items()}
        self.tokens = self._records(products.token_records, "token")
        self.items = self._records(products.item_records, "item")

    def rank(self, factor: str, name: str) -> tuple[int, str]:
        """Return the place of a factor's level: as in the recipe, others after it."""
        known = self._ranks[factor]
        return (known.index(name) if name in known else len(known)), name

    def order(self, row: Any, **factors: str) -> tuple[Any, ...]:
        """Return what to sort a row by: ranks of factors (in fields of these names), sample."""
        ranks = [self.rank(factor, getattr(row, field)) for factor, field in factors.items()]
        return *ranks, getattr(row, "sample", ALL_SAMPLES)

    def for_comparison(self, records: Iterable[RecordFile]) -> list[RecordFile]:
        """Return records in the order to compare them in: of a pair the latter is B.

        The baseline is last, and no imatrix next to it: differences are then what a calibration
        does to them.
        """
        last = (self.baseline, NO_IMATRIX)
        return sorted(records, key=lambda r: [r.calibration == label for label in last])

    def _records(self, paths: Iterable[Path], kind: str) -> list[RecordFile]:
        every = (run for path in paths for run in runs.find(path) if run.kind == kind)
        records = [self._record(run) for run in every]
        factors = {name: name for name in ("model", "task", "text", "calibration", "type")}
        return sorted(records, key=lambda r: (self.order(r, **factors), r.run.sample))

    def _record(self, run: Run) -> RecordFile:
        task = run.signature.get("task", {})
        text, name = (run.text, "") if run.kind == "token" else (task["language"], task["name"])
        sha256 = run.signature["quant"]["sha256"]
        key = hashlib.sha256(canonical_json(run.signature).encode()).hexdigest()[:12]
        self.signatures[key] = run.signature
        if model := self._models.get(sha256):
            return RecordFile(run, model, "", ALL_SAMPLES, "", text, name, key)
        quant = self._quants.get(sha256)
        if quant is None:
            problem = f"these records are of {run.name()}, which this study did not make"
            fix = f"rm {shlex.quote(str(run.path))}; imatrix-lab study resume"
            raise BadRecords(problem, where=run.path, fix=fix)
        sample = quant.sample if run.sample else ALL_SAMPLES
        # files do not tell quantizers apart as a recipe does
        run = replace(run, calib=quant.calibration, type=quant.type, size_bytes=quant.size_bytes)
        return RecordFile(run, quant.model, quant.calibration, sample, quant.type, text, name, key)
