"""Fixtures that whole runs share with the folders they join."""

from tests.imatrix.conftest import imatrix_of, loss_store, moe, quantized, store  # noqa: F401
