"""What a study made: the record between its steps and the assembly of its results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.report import results
from imatrix_lab.study.recipe import Recipe
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model


@dataclass(frozen=True)
class MadeImatrix:
    """An importance matrix, or the absence of one.

    Attributes
    ----------
    model : label.
    label : as `compare` names the calibration: ``nb``, ``nb50-en50``, ``nb-pooled``,
        ``no imatrix``.
    name : in words.
    kind : language, mixture, pooled, control or none.
    sample : from 1; `results.ALL_SAMPLES` for what all samples went into.
    shares : of each language.
    path : in the study's folder; None for none, and where the file is gone.
    corpus : the text it was collected on; None for what was merged.
    merged_from : sha256 of the imatrices that went in.
    """

    model: str
    label: str
    name: str
    kind: str
    sample: int
    shares: dict[str, float]
    path: Path | None
    facts: ImatrixFacts | None
    corpus: CorpusFacts | None
    merged_from: tuple[str, ...] = ()


@dataclass(frozen=True)
class MadeQuant:
    """A quantized file, which may be gone; its type is as it was asked for."""

    model: str
    calibration: str
    sample: int
    type: str
    label: str
    sha256: str
    size_bytes: int
    bits_per_weight: float
    n_fallback: int


@dataclass(frozen=True)
class MadeLoss:
    """What a quant is predicted to lose in a language; see `imatrix.predict`."""

    model: str
    calibration: str
    sample: int
    type: str
    language: str
    predicted_loss: float


@dataclass(frozen=True)
class Made:
    """Everything a study made.

    Attributes
    ----------
    models : by label.
    tools : the toolchain's signature.
    token_records, item_records : Parquet files in the study's folder.
    commands : that repeat the study.
    """

    recipe: Recipe
    models: dict[str, Model]
    tools: dict[str, Any]
    imatrices: tuple[MadeImatrix, ...]
    quants: tuple[MadeQuant, ...]
    losses: tuple[MadeLoss, ...]
    token_records: tuple[Path, ...]
    item_records: tuple[Path, ...]
    missing: tuple[results.Missing, ...]
    times: results.Times
    commands: tuple[str, ...]
