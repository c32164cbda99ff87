"""Write docs/recipe.toml: every key of a recipe, from the dataclasses that define it.

python tools/recipe_reference.py
"""

import dataclasses
import inspect
import json
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imatrix_lab.study.recipe import REFERENCE, Recipe

HEAD = f"""\
# Every key of a study's recipe, with its default, or an example where there is none.
# imatrix-lab study run RECIPE.toml; an unknown key is an error that names the nearest one.
# Made by tools/recipe_reference.py from imatrix_lab/study/recipe.py: change that, not {REFERENCE}.
"""
EXAMPLES: dict[str, Any] = {
    "schema": 1,
    "name": "my-study",
    "types": ("Q4_K_M", "Q3_K_S", "size:Q4_K_M"),
    "calibration.texts": ("nb", "en", "nb=0.5,en=0.5", "none"),
    "evaluation.texts": ("nb", "en"),
    "tasks.name": "belebele",
    "comparison.margins": {"kld_nats": 0.01, "score": 1.5},
    "reduced": {"calibration": {"tokens": 8192}},
}


def reference() -> str:
    """Return the file."""
    return "\n".join((HEAD, *_table(Recipe, ""))).rstrip() + "\n"


def _table(cls: type, at: str) -> Iterator[str]:
    """Yield a dataclass's lines: its own keys, then its tables."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    inner = {name: _dataclass(hints[name]) for name in fields}
    for name, field in fields.items():
        key = f"{at}.{name}" if at else name
        if inner[name] is None and name != "reduced":
            yield from _comment(_doc(hints[name]))
            yield f"{name} = {_toml(EXAMPLES.get(key, _default(field)))}"
            yield ""
    for name, table in inner.items():
        if table is not None:
            yield from _comment(inspect.cleandoc(table.__doc__ or ""))
            many = typing.get_origin(hints[name]) is tuple
            yield f"[[{name}]]" if many else f"[{name}]"
            yield from _table(table, name)
    if "reduced" in fields:
        yield from _comment(_doc(hints["reduced"]))
        for name, values in EXAMPLES["reduced"].items():
            yield f"[reduced.{name}]"
            yield from (f"{key} = {_toml(value)}" for key, value in values.items())


def _dataclass(hint: Any) -> type | None:
    """Return the dataclass that a field holds, or holds several of."""
    item = next(iter(typing.get_args(hint)), None) if typing.get_origin(hint) is tuple else hint
    return typing.cast(type, item) if dataclasses.is_dataclass(item) else None


def _doc(hint: Any) -> str:
    return str(hint.__metadata__[0])


def _default(field: dataclasses.Field[Any]) -> Any:
    has_factory = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if has_factory else field.default  # type: ignore[operator]


def _comment(text: str) -> list[str]:
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, 96)]
    return [f"# {line}" for line in lines]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    (Path(__file__).parent.parent / REFERENCE).write_text(reference(), encoding="utf-8")
