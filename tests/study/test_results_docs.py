"""The documentation of results.json names every field."""

import dataclasses
import typing
from pathlib import Path

import pytest

from imatrix_lab.report import results

TEXT = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
PLACE = {"model", "text", "task", "type", "calibration", "sample"}


@pytest.mark.parametrize("field", dataclasses.fields(results.Results), ids=lambda f: f.name)
def test_every_field_is_documented(field):
    row = next((x for x in TEXT.splitlines() if x.startswith("|") and f"`{field.name}`" in x), "")
    assert row
    (*kinds,) = typing.get_args(typing.get_type_hints(results.Results)[field.name])
    if kinds and dataclasses.is_dataclass(kinds[0]):
        row = next(x for x in TEXT.splitlines() if x.startswith(f"| `{field.name}`"))
        names = {f.name for f in dataclasses.fields(kinds[0])} - PLACE
        assert {n for n in names if f"`{n}`" not in row} == set()
