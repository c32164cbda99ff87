"""Templates of task definitions: what is in braces is looked up once, and never read again.

Text from a data set goes in as it is: braces in it mean nothing.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

_PLACE = re.compile(r"\{(?P<path>\w+(?:\.\w+)*)(?:\[(?P<key>\w+)\])?(?:\|(?P<filter>\w+))?\}")

FILTERS: Mapping[str, Callable[[str], str]] = {
    "lower": lambda text: text[:1].lower() + text[1:],  # first letter
    "stem": lambda text: re.sub(r"[.。।؟?!\s]+$", "", text).strip(),  # without the final mark
    "before": lambda text: text.partition("_")[0].rstrip(),  # a gap
    "after": lambda text: text.partition("_")[2],
}


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Return a template with its places filled; `KeyError` for one without a value or filter."""
    return _PLACE.sub(lambda match: _text(_value(match, values)), template)


def whole(template: str, values: Mapping[str, Any]) -> Any:
    """Return the value itself for a template of one place (a list, a number), else its text."""
    match = _PLACE.fullmatch(template)
    return _value(match, values) if match else fill(template, values)


def places(template: str) -> list[str]:
    """Return the first words of all places, as columns must have them."""
    return [match["path"].partition(".")[0] for match in _PLACE.finditer(template)]


def _value(match: re.Match[str], values: Mapping[str, Any]) -> Any:
    value: Any = values
    for word in match["path"].split("."):
        value = _step(value, word)
    if match["key"]:
        value = _step(value, str(_step(values, match["key"])))
    return FILTERS[match["filter"]](_text(value)) if match["filter"] else value


def _step(value: Any, word: str) -> Any:
    if isinstance(value, list):  # a column of records: the field of each
        return [_step(entry, word) for entry in value]
    if not isinstance(value, Mapping):
        raise KeyError(word)
    return value[word]


def _text(value: Any) -> str:
    return "" if value is None else str(value)
