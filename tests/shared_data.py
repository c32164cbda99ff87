"""Data that developers have and the repository has not."""

import os
from pathlib import Path

import pytest

FOLDER = Path(
    os.environ.get("IMATRIX_LAB_SHARED_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")
)


def file(name: str) -> Path:
    """Return a file or folder of it, or skip the test."""
    if not (FOLDER / name).exists():
        pytest.skip(f"no {name} in {FOLDER}; set IMATRIX_LAB_SHARED_DATA")
    return FOLDER / name
