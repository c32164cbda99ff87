"""Plain data to records and back."""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imatrix_lab.core import config
from imatrix_lab.core.files import canonical_json
from imatrix_lab.errors import UsageError
from imatrix_lab.report.results import Results

SCALARS = {
    str: st.text(max_size=5),
    int: st.integers(-(2**60), 2**60),
    float: st.floats(),
    bool: st.booleans(),
}
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)


def values(kind: object) -> st.SearchStrategy:
    """Values of a field, from its type alone."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any:
        return ANY
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{f.name: values(hints[f.name]) for f in dataclasses.fields(kind)})
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=3), values(arguments[1]), max_size=2)
    return SCALARS[kind]


@settings(max_examples=25, deadline=None)
@given(values(Results))
def test_results_survive_their_file(found: Results) -> None:
    text = canonical_json(config.plain(found))
    again = config.build(Results, json.loads(text), "x")
    assert canonical_json(config.plain(again)) == text
    assert type(again) is Results
    assert all(type(c) is type(d) for c, d in zip(again.scores, found.scores, strict=True))


@dataclass(frozen=True)
class Inner:
    n: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    many: tuple[Inner, ...] = ()
    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    loose: dict[str, typing.Any] = dataclasses.field(default_factory=dict)
    told: bool = False
    computed: int = dataclasses.field(default=0, init=False)


GOOD = {"name": "a", "inner": {"n": 1}}


def test_what_is_given_and_what_is_not() -> None:
    found = config.build(
        Outer, {**GOOD, "many": [{"n": 2, "share": 1}], "shares": {"nb": None}}, "x"
    )
    assert found.many == (Inner(2, 1.0),)
    assert type(found.many[0].share) is float
    assert math.isnan(found.shares["nb"])
    assert found.inner.share == 0.5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nmae": "a"}, "unknown key 'nmae'; 'name'?"),
        ({"inner": {"n": 1, "shore": 1.0}}, r"unknown key 'shore' in \[inner\]; 'share'?"),
        ({"computed": 1}, "unknown key 'computed'"),
        ({"inner": {}}, r"missing key 'n' in \[inner\]"),
        ({"inner": 3}, "inner is not a table of keys"),
        ({"inner": {"n": 1.0}}, "inner.n: 1.0 is not a whole number"),
        ({"inner": {"n": True}}, "inner.n: True is not a whole number"),
        ({"inner": {"n": 1, "share": True}}, "inner.share: True is not a number"),
        ({"shares": {"nb": "1"}}, "shares.nb: '1' is not a number"),
        ({"shares": {"nb": 10**400}}, "is not a number"),
        ({"shares": {"nb": math.inf}}, "shares.nb: inf is not a number"),
        ({"shares": [1.0]}, "shares: .* is not a table, each a number"),
        ({"many": {"n": 1}}, "many: .* is not a list, each a table"),
        ({"many": "abc"}, "many: 'abc' is not a list"),
        ({"name": None}, "name: None is not a text"),
        ({"told": 1}, "told: 1 is not true or false"),
    ],
)
def test_what_cannot_be_meant(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        config.build(Outer, {**GOOD, **change}, "the file")
    assert caught.value.where == "the file"


def test_missing_key_and_no_table() -> None:
    with pytest.raises(UsageError, match="missing key 'inner'"):
        config.build(Outer, {"name": "a"}, "x")
    with pytest.raises(UsageError, match="this is not a table"):
        config.build(Outer, ["name"], "x")


def test_toml_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        config.read_toml(path)
    for text in (b"a = ", b"a = " + b"[" * 100_000):
        path.write_bytes(text)
        with pytest.raises(UsageError, match="not valid TOML"):
            config.read_toml(path)
    for text in (b"\xff = 1", "a = 1".encode("utf-16")):
        path.write_bytes(text)
        with pytest.raises(UsageError, match="not UTF-8"):
            config.read_toml(path)


def test_an_editors_byte_order_mark_is_no_part_of_toml(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("a = 1", encoding="utf-8-sig")
    assert config.read_toml(path) == {"a": 1}
