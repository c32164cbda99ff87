"""Templates of task definitions: what is in braces is looked up once, and never read again.

Text from a data set goes in as it is: braces in it mean nothing.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

_PLACE = re.compile(r"\{(?P<path>\w+(?:\.\w+)*)(?:\[(?P<key>\w+)\])?(?:\|(?P<filter>\w+))?\}")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _stem(text: str) -> str:
    return re.sub(r"[.。।؟?!\s]+$", "", text).strip()


FILTERS: Mapping[str, Callable[[str], str]] = {
    "lower": _lower,  # first letter
    "stem": _stem,  # without the final mark
    "before": lambda text: text.partition("_")[0].rstrip(),  # a gap
    "after": lambda text: text.partition("_")[2],
}


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Return a template with its places filled.

    Raises
    ------
    KeyError : a place whose value is not there, or an unknown filter.
    """
    return _PLACE.sub(lambda found: _text(_value(found, values)), template)


def whole(template: str, values: Mapping[str, Any]) -> Any:
    """Return the value itself for a template of one place (a list, a number), else its text.

    Raises
    ------
    KeyError : see `fill`.
    """
    found = _PLACE.fullmatch(template)
    return _value(found, values) if found else fill(template, values)


def places(template: str) -> list[str]:
    """Return the first words of all places, as columns must have them."""
    return [found["path"].partition(".")[0] for found in _PLACE.finditer(template)]


def _value(found: re.Match[str], values: Mapping[str, Any]) -> Any:
    value: Any = values
    for word in found["path"].split("."):
        value = _step(value, word)
    if found["key"]:
        value = _step(value, str(_step(values, found["key"])))
    if found["filter"]:
        value = FILTERS[found["filter"]](_text(value))
    return value


def _step(value: Any, word: str) -> Any:
    if isinstance(value, list):  # a column of records: the field of each
        return [_step(one, word) for one in value]
    if not isinstance(value, Mapping):
        raise KeyError(word)
    return value[word]


def _text(value: Any) -> str:
    return "" if value is None else str(value)
