"""Fixtures that commands share with the folders they call."""

from tests.imatrix.conftest import imatrix_of, loss_store, quantized  # noqa: F401
