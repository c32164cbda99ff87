"""What tests of the engine's parts share; models, quants and kernel are the main conftest's."""

from collections.abc import Callable
from pathlib import Path

import pytest

from imatrix_lab.core.store import Store


@pytest.fixture
def store(score_store: Callable[[Path], Store], tmp_path: Path) -> Store:
    """A store of the test's own, with the toolchain and the kernel in it."""
    return score_store(tmp_path / "store")
