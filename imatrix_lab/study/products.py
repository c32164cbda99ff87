"""What a study made: passed from its steps to the assembly of its results."""

from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.report.results import Calibration, Missing, Prediction, Quant, Times
from imatrix_lab.study.recipe import Recipe
from imatrix_lab.types import Model


@dataclass(frozen=True)
class Products:
    """Everything a study made.

    Attributes
    ----------
    models : by label.
    calibrations : in no particular order; the absence of an imatrix is one.
    imatrices : files that exist, by sha256.
    quants : their files may be gone.
    predictions : without what was measured.
    token_records, item_records : Parquet files in the study's folder.
    commands : that repeat the study.
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
