"""The browser of the report's tests, for pages of this folder."""

from tests.report.conftest import browser

__all__ = ["browser"]
