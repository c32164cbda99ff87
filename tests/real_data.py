"""Real data that is not in the repository: parallel news (NTREX-128), and MixEval's answers."""

import os
from pathlib import Path

import pytest

FOLDER = Path(
    os.environ.get("IMATRIX_LAB_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data"
)


def need(name: str) -> Path:
    """Return a file or folder of it; skip where it is absent."""
    if not (FOLDER / name).exists():
        pytest.skip(f"no {name} in {FOLDER}; set IMATRIX_LAB_SHARED_DATA")
    return FOLDER / name
