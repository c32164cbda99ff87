"""Items: what a benchmark's rows say, in one form."""

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imatrix_lab.errors import BadText
from imatrix_lab.tasks import template
from imatrix_lab.tasks.definition import Definition
from imatrix_lab.tasks.locale import Speech
from imatrix_lab.tasks.scorers.multiple_choice import LETTERS

NO_GOLD = "no gold answer"
TOO_MANY = "more options than letters"
NO_OPTIONS = "fewer than two options"
NO_QUESTION = "no question"
BAD_GOLD = "a gold answer that is none of the options"
TWICE = "an id that another item has"


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes
    ----------
    id : unique in its language.
    part : of the benchmark, where it has some.
    golds : right answers in words; for options, the option's.
    right : place of the right option, from 0; None without options.
    cluster : items with the same one are not independent.
    row : the columns it was made from, for the prompt.
    """

    id: str
    language: str
    part: str
    context: str
    question: str
    options: tuple[str, ...]
    golds: tuple[str, ...]
    right: int | None
    cluster: str
    row: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Items:
    """The items of one language.

    Attributes
    ----------
    rejected : ids of rows that are no items, by reason.
    """

    items: tuple[Item, ...]
    rejected: Mapping[str, tuple[str, ...]]


class _Reject(Exception):
    """A row that is no item; says why."""


def make(
    rows: Iterable[Mapping[str, Any]], definition: Definition, language: str, speech: Speech
) -> Items:
    """Return the items that rows are, in order.

    Raises
    ------
    BadText : the data do not have a column that the definition names.
    """
    found: dict[str, Item] = {}
    rejected: dict[str, list[str]] = {}
    for place, row in enumerate(rows):
        values = {**row, "words": speech.words, "place": place}
        try:
            item = _item(values, definition, language)
            if item.id in found:
                raise _Reject(TWICE)
            found[item.id] = item
        except _Reject as error:
            rejected.setdefault(str(error), []).append(str(row.get("id", place)))
        except KeyError as error:
            raise BadText(
                f"the data of {definition.name} have no {error}; they have"
                f" {', '.join(sorted(map(str, row)))}",
                where=definition.path,
                fix="correct [fields] in the definition, or the data",
            ) from error
    return Items(tuple(found.values()), {why: tuple(ids) for why, ids in rejected.items()})


def _item(values: Mapping[str, Any], definition: Definition, language: str) -> Item:
    fields = definition.fields
    question = template.fill(fields["question"], values).strip()
    if not question:
        raise _Reject(NO_QUESTION)
    options = _options(values, definition)
    golds, right = _gold(values, definition, options)
    part = template.fill(fields.get("part", ""), values)
    own = template.fill(fields.get("id", "{place}"), values)
    return Item(
        id=f"{part}/{own}" if part else own,
        language=language,
        part=part,
        context=template.fill(fields.get("context", ""), values).strip(),
        question=question,
        options=options,
        golds=golds,
        right=right,
        cluster=template.fill(fields.get("cluster", ""), values).strip(),
        row=values,
    )


def _options(values: Mapping[str, Any], definition: Definition) -> tuple[str, ...]:
    templates = definition.fields.get("options", [])
    try:
        raw = [template.whole(one, values) for one in templates]
    except KeyError:
        if definition.scorer == "mixeval":  # free form has no such column
            return ()
        raise
    if len(raw) == 1 and (raw[0] is None or isinstance(raw[0], list)):
        raw = raw[0] or []
    options = tuple(str(one).strip() for one in raw)
    if not options and definition.scorer == "mixeval":
        return ()
    if definition.scorer == "choice" or options:
        if len(options) > len(LETTERS):
            raise _Reject(TOO_MANY)
        if len(options) < 2 or not all(options):
            raise _Reject(NO_OPTIONS)
    return options


def _gold(
    values: Mapping[str, Any], definition: Definition, options: tuple[str, ...]
) -> tuple[tuple[str, ...], int | None]:
    if "gold" not in definition.fields:
        return (), None
    raw = template.whole(definition.fields["gold"], values)
    golds = [one for one in (raw if isinstance(raw, list) else [raw]) if one is not None]
    texts = tuple(dict.fromkeys(str(one).strip() for one in golds if str(one).strip()))
    if not texts:
        raise _Reject(NO_GOLD)
    if not options:
        return texts, None
    right = _place(texts[0], definition.fields.get("gold_is", "from 0"), options)
    if right is None or not 0 <= right < len(options):
        raise _Reject(BAD_GOLD)
    return (options[right],), right


def _place(gold: str, kind: str, options: tuple[str, ...]) -> int | None:
    """Return which option a gold answer is, from 0."""
    if kind == "letter":
        letter = gold.strip(" ().").upper()
        return string.ascii_uppercase.find(letter) if len(letter) == 1 else None
    if kind == "text":
        return options.index(gold) if gold in options else None
    try:
        return int(float(gold)) - (kind == "from 1")
    except (ValueError, OverflowError):
        return None
