"""Fixtures that whole runs share with the folders they join."""

from tests.imatrix.conftest import (  # noqa: F401
    imatrix_of,
    loss_store,
    moe,
    quantized,
    store,
)
