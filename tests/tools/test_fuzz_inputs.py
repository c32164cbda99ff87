"""Inputs of the fuzz campaign: what one of them changes is in no other."""

import importlib
import json
import random
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
HONEST = {"a": [1, {"b": "x"}], "c": {"d": [2.5, None]}}


@pytest.fixture(scope="module")
def inputs():
    sys.path.insert(0, str(TOOLS))
    yield importlib.import_module("fuzz_inputs")
    sys.path.remove(str(TOOLS))


def test_an_input_does_not_depend_on_those_before_it(inputs):
    def input_of(number):
        return inputs.as_json(inputs.changed_value(HONEST, random.Random(number)))

    first = [input_of(number) for number in range(300)]
    assert [input_of(number) for number in reversed(range(300))] == first[::-1]
    assert json.dumps(HONEST) == '{"a": [1, {"b": "x"}], "c": {"d": [2.5, null]}}'
