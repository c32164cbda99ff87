"""Items: what a benchmark's rows say, in one form."""

import string
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imatrix_lab.errors import BadText
from imatrix_lab.tasks import template
from imatrix_lab.tasks.definition import Definition
from imatrix_lab.tasks.locale import Locale
from imatrix_lab.tasks.scorers.multiple_choice import LETTERS

NO_GOLD = "no gold answer"
TOO_MANY = "more options than letters"
NO_QUESTION = "no question"
TWICE = "an id that another item has"
BAD_GOLD = "a gold answer that is none of the options"
NO_OPTIONS = "fewer than two options"


@dataclass(frozen=True)
class Item:
    """One question, with an id of its own in its language.

    `golds` are right answers in words; `right` is the place of the right option, from 0. Items of
    the same cluster are not independent.
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


class _Reject(Exception):
    """Why a row is no item."""


def make_items(
    rows: Iterable[Mapping[str, Any]], task: Definition, locale: Locale
) -> tuple[list[Item], dict[str, int]]:
    """Return the items in rows, in order, and how many rows are no items, by reason.

    `BadText` names a column of the definition that the data lack.
    """
    items: dict[str, Item] = {}
    rejected: Counter[str] = Counter()
    for place, row in enumerate(rows):
        try:
            item = _item({**row, "words": locale.words, "place": place}, task, locale.code)
            if item.id in items:
                raise _Reject(TWICE)
            items[item.id] = item
        except _Reject as error:
            rejected[str(error)] += 1
        except KeyError as error:
            columns = ", ".join(sorted(map(str, row)))
            what = f"the data of {task.name} have no {error}; they have {columns}"
            fix = "correct [fields] in the definition, or the data"
            raise BadText(what, where=task.path, fix=fix) from error
    return list(items.values()), dict(rejected)


def _item(values: Mapping[str, Any], task: Definition, language: str) -> Item:
    fields = task.fields
    question = template.fill(fields.question, values).strip()
    if not question:
        raise _Reject(NO_QUESTION)
    options = _options(values, task)
    golds, right = _gold(values, task, options)
    part, name = template.fill(fields.part, values), template.fill(fields.id, values)
    context = template.fill(fields.context, values).strip()
    cluster = template.fill(fields.cluster, values).strip()
    name = f"{part}/{name}" if part else name
    return Item(name, language, part, context, question, options, golds, right, cluster, values)


def _options(values: Mapping[str, Any], task: Definition) -> tuple[str, ...]:
    try:
        raw = [template.whole(text, values) for text in task.fields.options]
    except KeyError:
        if task.scorer == "mixeval":  # free form has no such column
            return ()
        raise
    if len(raw) == 1 and (raw[0] is None or isinstance(raw[0], list)):
        raw = raw[0] or []
    options = tuple(str(option).strip() for option in raw)
    if options or task.scorer == "choice":
        if len(options) > len(LETTERS):
            raise _Reject(TOO_MANY)
        if len(options) < 2 or not all(options):
            raise _Reject(NO_OPTIONS)
    return options


def _gold(
    values: Mapping[str, Any], task: Definition, options: tuple[str, ...]
) -> tuple[tuple[str, ...], int | None]:
    if not task.fields.gold:
        return (), None
    raw = template.whole(task.fields.gold, values)
    texts = [str(g).strip() for g in (raw if isinstance(raw, list) else [raw]) if g is not None]
    golds = tuple(dict.fromkeys(filter(None, texts)))
    if not golds:
        raise _Reject(NO_GOLD)
    if not options:
        return golds, None
    right = _place(golds[0], task.fields.gold_is or "from 0", options)
    if right is None or not 0 <= right < len(options):
        raise _Reject(BAD_GOLD)
    return (options[right],), right


def _place(gold: str, gold_is: str, options: tuple[str, ...]) -> int | None:
    if gold_is == "letter":
        letter = gold.strip(" ().").upper()
        return string.ascii_uppercase.find(letter) if len(letter) == 1 else None
    if gold_is == "text":
        return options.index(gold) if gold in options else None
    try:
        return int(float(gold)) - (gold_is == "from 1")
    except (ValueError, OverflowError):
        return None
