"""A study that never was: records of known effects, in the shape that stages write them."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np

from imatrix_lab.core.progress import Silent
from imatrix_lab.imatrix import format
from imatrix_lab.records.runs import NO_IMATRIX
from imatrix_lab.report.results import ALL_SAMPLES, Calibration, Prediction, Quant, Times
from imatrix_lab.study.analyse.index import Products
from imatrix_lab.study.recipe import (
    CalibrationSettings,
    ComparisonSettings,
    Evaluation,
    Recipe,
    Task,
)
from imatrix_lab.tasks import run
from imatrix_lab.types import ComputeOptions, Model, ModelFacts, TaskRequest
from tests.compare.made_up import Text, quant
from tests.imatrix.made_up import imatrix
from tests.tasks.fakes import Answerer

SHARES = {"en": {"en": 1.0}, "nb": {"nb": 1.0}, "en25-nb75": {"en": 0.25, "nb": 0.75}, "": {}}
EXAM = """
name = "exam"
title = "An exam"
scorer = "choice"
licence = "CC0-1.0"
citation = "us"
[source]
files = ["exam.json"]
[fields]
id = "{id}"
question = "{ask}"
options = "{choices}"
gold = "{right}"
cluster = "{text}"
[prompt]
ask = "{words.question}: {question}\\n{lettered}\\n{words.answer}:"
"""


def recipe(**changes) -> Recipe:
    """A recipe of two languages, a mixture and none; margins in display units."""
    settings = {
        "margins": {"kld_nats": 0.002, "score": 5.0}, "resamples": 300,
        "metrics": ("kld_nats", "top1_agreement"),
    }  # fmt: skip
    given = {
        "schema": 1, "name": "made-up", "types": ("Q4_K_M", "Q3_K_S"),
        "calibration": CalibrationSettings(("en", "nb", "en=0.25,nb=0.75", "none"), samples=2),
        "evaluation": Evaluation(("nb", "en", "ml")), "comparison": ComparisonSettings(**settings),
    }  # fmt: skip
    return Recipe(**{**given, **changes})


def model(label: str = "demo", sha256: str = "reference") -> Model:
    """A model that is only talked about."""
    facts = ModelFacts("llama", "Tiny", "cc0-1.0", 1000, 2, 256, 100, 2048, 0, "F16", 2000, 16.0,
                       {}, ())  # fmt: skip
    return Model(label, Path("nowhere.gguf"), (), sha256, facts, label)


def n_samples(calibration: str) -> int:
    return 2 if calibration else 1


def quants() -> tuple[Quant, ...]:
    """Every calibration, sample and type."""
    return tuple(
        Quant(
            "demo", calibration or NO_IMATRIX, sample if calibration else ALL_SAMPLES, kind,
            f"demo-{calibration}-{kind}",
            quant(calibration, kind, str(sample))["sha256"], 1000 + len(kind), 4.5, 3,
        )
        for calibration in SHARES
        for sample in range(1, 1 + n_samples(calibration))
        for kind in ("Q4_K_M", "Q3_K_S")
    )  # fmt: skip


def effect(text: str, calibration: str, sample: int, kind: str) -> float:
    """By how much of itself the divergence is larger: own language is best, none worst."""
    known = {"": 0.5, text: 0.0, "en25-nb75": 0.05}
    found = known.get(calibration, 0.15) * (2.0 if kind == "Q3_K_S" else 0.5)
    return found + 0.02 * (sample - 1)


def tokens(folder: Path, texts=("nb", "en", "ml"), n_documents: int = 14) -> tuple[Path, ...]:
    """Write token records of every quant on every text."""
    return tuple(
        Text(label, n_documents, 30).write(
            folder / f"{label}-{calibration or 'none'}-{kind}-{sample}.parquet", calibration, kind,
            effect(label, calibration, sample, kind), str(sample),
        )
        for label in texts
        for calibration in SHARES
        for sample in range(1, 1 + n_samples(calibration))
        for kind in ("Q4_K_M", "Q3_K_S")
    )  # fmt: skip


def exam(folder: Path, n: int = 60) -> Path:
    """Write a benchmark of the user's own: B is right, two questions a group."""
    rows = [{"id": str(i), "text": f"g{i // 2}", "ask": f"Question {i}?",
             "choices": ["one", "two", "three"], "right": 1} for i in range(n)]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "exam.json").write_text(json.dumps(rows))
    (folder / "exam.toml").write_text(EXAM)
    return folder / "exam.toml"


class Student(Answerer):
    """A quant that knows its own language's answers more often."""

    def __init__(self, calibration: str, sample: int, language: str):
        super().__init__(f"{calibration or 'none'}-{sample}", self._likelihoods)
        self.calibration, self.sample = calibration, sample
        self.ease = 0.9 if calibration == language else 0.6 if calibration else 0.3

    def quant(self):
        return quant(self.calibration, "Q4_K_M", str(self.sample))

    def _likelihoods(self, item):
        word = f"{item.id}{self.calibration}{self.sample}"
        drawn = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") / 2**32
        return [-2.0, -1.0 if drawn < self.ease else -3.0, -4.0]


def items(folder: Path, languages=("nb", "en")) -> tuple[Path, ...]:
    """Write item records of every quant of one type, by the real runner of tasks."""
    task = exam(folder / "task")
    paths: list[Path] = []
    for language in languages:
        request = TaskRequest(
            (str(task),), (language,), ("x",), folder, ComputeOptions("cpu"),
            data=task.with_name("exam.json"),
            keep_text=True,
        )  # fmt: skip
        paths += run.run(
            request,
            [Student(c, s, language) for c in SHARES for s in range(1, 1 + n_samples(c))],
            Silent(),
        )
    return tuple(paths)


def calibrations(folder: Path) -> dict[str, object]:
    """Write small imatrices; return them as products, the absence of one among them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [Calibration("demo", NO_IMATRIX, "no imatrix", "none", 0, {}, 0, "", "", "", "")]
    paths = {}
    for calibration, shares in SHARES.items():
        for sample in range(1, 1 + n_samples(calibration)):
            if not calibration:
                continue
            rng = np.random.default_rng([sample, *calibration.encode()])
            tensors = {f"blk.{i}.ffn_up.weight": (rng.random(16) + 0.1, [64.0]) for i in (0, 1)}
            path = folder / f"{calibration}-{sample}.gguf"
            format.write(path, imatrix(calibration, **tensors))
            sha256 = f"imatrix-{calibration}-{sample}"
            paths[sha256] = path
            is_mixed = len(shares) > 1
            corpus = (f"text-{calibration}-{sample}", "made up", "CC0-1.0")
            rows.append(Calibration(
                "demo", calibration, calibration, "mixture" if is_mixed else "language", sample,
                shares, 640 + sample, sha256, *(("", "", "") if is_mixed else corpus),
                tuple(f"imatrix-{c}-{sample}" for c in shares) if is_mixed else (),
            ))  # fmt: skip
    return {"calibrations": tuple(rows), "imatrices": paths}


def predictions() -> tuple[Prediction, ...]:
    """Predictions that rank the calibrations on nb as they are, and those on en the other way."""
    return tuple(
        Prediction(
            "demo", q.calibration, q.sample, q.type, language,
            (1 if language == "nb" else -1)
            * effect(language, q.calibration.replace(NO_IMATRIX, ""), q.sample or 1, q.type),
            math.nan,
        )
        for q in quants()
        for language in ("nb", "en")
    )  # fmt: skip


def products(**changes) -> Products:
    """A whole study of texts; see `items` for tasks."""
    given = {
        "recipe": recipe(), "models": {"demo": model()}, "calibrations": (), "imatrices": {},
        "quants": quants(), "predictions": (), "token_records": (), "item_records": (),
        "missing": (), "times": Times({"score": 2.0}, 3.0),
        "commands": ("imatrix-lab study run made-up.toml",),
    }  # fmt: skip
    return Products(**{**given, **changes})


def with_task(task: Path, **changes) -> Recipe:
    """A recipe with a task besides."""
    return dataclasses.replace(recipe(**changes), tasks=(Task(str(task), ("nb", "en")),))
