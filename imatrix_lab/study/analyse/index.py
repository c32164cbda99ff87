"""Files of records as places in a study: which model, calibration, sample, type, text and task."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.core.files import canonical_json
from imatrix_lab.errors import BadRecords
from imatrix_lab.records import runs
from imatrix_lab.records.runs import NO_IMATRIX, Run
from imatrix_lab.report.results import ALL_SAMPLES
from imatrix_lab.study.products import Made, MadeQuant
from imatrix_lab.study.recipe import NONE, Recipe
from imatrix_lab.study.validate import mixtures


@dataclass(frozen=True)
class Record:
    """A file of records.

    Attributes
    ----------
    calibration, type : empty for the original.
    sample : from 1; `ALL_SAMPLES` without an imatrix, and where all went into one.
    text : label of the text, or the task's language; `task` is empty for texts.
    signature : key of `signatures`.
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


class Grid:
    """A study's records in an order that does not depend on that of the files.

    Attributes
    ----------
    baseline : the calibration that others are compared with, by label.
    tokens, items : records, by model, text, calibration, type and sample.
    signatures : of all records, each once.

    Raises
    ------
    BadRecords : damaged records, or of a quant that is not the study's.
    """

    def __init__(self, made: Made):
        said, labels = made.recipe, _labels(made.recipe)
        self.baseline = labels[said.comparison.baseline or said.calibration.texts[0]]
        self._ranks = {
            "model": list(made.models),
            "task": ["", *(Path(t.name).stem for t in said.tasks)],
            "text": [*(t.partition("=")[0] for t in said.evaluation.texts),
                     *(code for t in said.tasks for code in t.languages)],
            "calibration": ["", *(labels[word] for word in said.calibration.texts)],
            "type": ["", *said.types],
        }  # fmt: skip
        self.signatures: dict[str, dict[str, Any]] = {}
        quants = {q.sha256: q for q in made.quants}
        models = {m.sha256: label for label, m in made.models.items()}
        self.tokens = self._records(made.token_records, "token", quants, models)
        self.items = self._records(made.item_records, "item", quants, models)

    def rank(self, factor: str, name: str) -> tuple[int, str]:
        """Return where a level of a factor stands: as in the recipe, others after it."""
        known = self._ranks[factor]
        return (known.index(name) if name in known else len(known)), name

    def judged(self, records: Iterable[Record]) -> list[Record]:
        """Return records in the order to compare them in: of a pair the latter is B.

        The baseline is last, and no imatrix next to it: differences are then what a calibration
        does to them.
        """
        last = (self.baseline, NO_IMATRIX)
        return sorted(records, key=lambda r: -last.index(r.calibration) if r.calibration in last
                      else -len(last))  # fmt: skip

    def _records(
        self, paths: Iterable[Path], kind: str, quants: Mapping[str, MadeQuant],
        models: Mapping[str, str],
    ) -> list[Record]:  # fmt: skip
        found = [self._record(run, quants, models) for path in paths for run in runs.find(path)
                 if run.kind == kind]  # fmt: skip
        return sorted(found, key=self._order)

    def _order(self, r: Record) -> tuple[Any, ...]:
        ranks = zip(("model", "task", "text", "calibration", "type"),
                    (r.model, r.task, r.text, r.calibration, r.type), strict=True)  # fmt: skip
        return *(self.rank(factor, name) for factor, name in ranks), r.sample, r.run.sample

    def _record(
        self, run: Run, quants: Mapping[str, MadeQuant], models: Mapping[str, str]
    ) -> Record:
        task = run.signature.get("task", {})
        text, name = (run.text, "") if run.kind == "token" else (task["language"], task["name"])
        sha256 = run.signature["quant"]["sha256"]
        key = self._signed(run.signature)
        if sha256 in models:
            return Record(run, models[sha256], "", ALL_SAMPLES, "", text, name, key)
        quant = quants.get(sha256)
        if quant is None or quant.calibration != run.calib or quant.type != run.type:
            raise BadRecords(
                f"these are of {run.name()}, which is not what this study made", where=run.path,
                fix="delete this file, then: imatrix-lab study resume",
            )  # fmt: skip
        sample = quant.sample if run.sample else ALL_SAMPLES
        return Record(run, quant.model, quant.calibration, sample, quant.type, text, name, key)

    def _signed(self, signature: dict[str, Any]) -> str:
        key = hashlib.sha256(canonical_json(signature).encode()).hexdigest()[:12]
        self.signatures[key] = signature
        return key


def _labels(recipe: Recipe) -> dict[str, str]:
    """Return what `compare` calls each calibration of a recipe."""
    return {NONE: NO_IMATRIX, **{word: m.label for word, m in mixtures(recipe).items()}}
