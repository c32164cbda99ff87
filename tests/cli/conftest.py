"""Fixtures that commands share with the folders they call."""

from tests.imatrix.conftest import imatrix_of, quantized  # noqa: F401
