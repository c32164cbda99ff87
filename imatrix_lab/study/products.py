"""What a study made: passed from its steps to the assembly of its results."""

from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.report.results import Calibration, Missing, Prediction, Quant, Times
from imatrix_lab.study.recipe import Recipe
from imatrix_lab.types import Model


@dataclass(frozen=True)
class Products:
    """Everything a study made: models by label, imatrices (those whose file exists) by sha256.

    Predictions are without what was measured; commands are those that repeat the study.
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
