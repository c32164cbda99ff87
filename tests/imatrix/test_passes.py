"""How often a model larger than memory is read."""

import dataclasses

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.imatrix import collect, expected, passes
from imatrix_lab.models.resolve import resolve
from tests.imatrix.test_collect import collected


@pytest.fixture
def model(tiny):
    return resolve(str(tiny), Session(Store(), Silent()))


def test_more_memory_means_fewer_passes(model):
    tensors, size_bytes = expected.of(model), model.facts.size_bytes
    assert passes.plan(model, tensors, 128, 40, size_bytes) is None
    one = 128 * passes.bytes_per_token(model, tensors, 128)
    larger = dataclasses.replace(
        model, facts=dataclasses.replace(model.facts, size_bytes=1000 * one)
    )
    for memory_windows, n_at_once, n_passes in [(0, 1, 40), (8, 4, 10), (1000, 40, 1)]:
        plan = passes.plan(larger, tensors, 128, 40, memory_windows * one - (memory_windows > 900))
        assert (plan.n_windows, plan.n_passes) == (n_at_once, n_passes)
        assert plan.work_bytes == n_at_once * one


def test_the_file_is_the_same_as_with_memory_enough(tiny, own_text, tmp_path, monkeypatch):
    text = own_text(11 * 128)
    whole = collected(tiny, text, tmp_path / "whole")
    monkeypatch.setattr(collect, "memory_bytes", lambda: 2_000_000)  # less than the model has
    monkeypatch.setattr(passes, "SHARE", 6.0)
    shapes = []
    real = collect._Context.read
    monkeypatch.setattr(
        collect._Context, "read", lambda self, w: (shapes.append(len(w)), real(self, w))[1]
    )
    assert collected(tiny, text, tmp_path / "passes") == whole
    assert shapes[0] > 1
