"""A reference that is worse than a guess."""

import math
from pathlib import Path

import numpy as np
import pytest

from imatrix_lab.errors import BadModel
from imatrix_lab.models import chance
from imatrix_lab.types import Model, ModelFacts

V = 32_000


def model(n_vocab):
    facts = ModelFacts("llama", "m", "", 1, 1, 1, n_vocab, 1, 0, "F16", 1, 16.0, {}, ())
    return Model("m", Path("m.gguf"), (), "", facts, "m.gguf")


@pytest.mark.parametrize(("nats", "good"), [(2.0, True), (10.3, True), (10.4, False), (18, False)])
def test_the_line_is_that_of_guessing(nats, good):
    if good:
        chance.require_better(nats, model(V))
        return
    with pytest.raises(BadModel, match="worse than chance") as refused:
        chance.require_better(nats, model(V))
    assert refused.value.fix and f"{math.log(V):.2f}" in refused.value.what


def test_toys_may_guess():
    chance.require_better(9.0, model(300))


def test_it_is_told_as_soon_as_it_can_be_known():
    running = chance.Chance(model(V))
    bad = np.full(chance.TOKENS_MIN // 2, 20.0, np.float32)
    bad[0] = np.nan
    running.add(bad)
    with pytest.raises(BadModel):
        for _ in range(2):
            running.add(bad)


def test_some_hard_tokens_are_not_enough():
    running = chance.Chance(model(V))
    running.add(np.full(100, 20.0))
    running.add(np.full(400, 5.0))


def test_a_reference_that_gives_no_numbers():
    running = chance.Chance(model(300))  # of toys too
    broken = np.full(chance.TOKENS_MIN // 2, np.nan)
    running.add(broken)
    with pytest.raises(BadModel, match="no finite"):
        running.add(broken)
    running = chance.Chance(model(300))
    running.add(np.full(1, 5.0))
    for _ in range(3):  # some tokens alone are left out of averages, and counted
        running.add(broken)
