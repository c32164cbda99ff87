"""Items: what a benchmark's rows say, in one form."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from imatrix_lab.errors import BadText
from imatrix_lab.tasks import golds, template
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


def with_gold_kind(
    rows: Iterable[Mapping[str, Any]], task: Definition, locale: Locale
) -> tuple[Definition, str]:
    """Return a definition that says what golds are, as the data show it, and a note on that.

    `BadText`: the data contradict each other, or the definition.
    """
    pairs = [pair for row in rows if (pair := _gold_and_options(row, task, locale))]
    kind, note = task.fields.gold_is, ""
    try:
        if kind:
            golds.check(pairs, kind)
        elif pairs:
            kind, is_sure = golds.kind_of(pairs)
            note = f"right answers {golds.WORDS[kind]}, as the data show"
            if not is_sure:
                note = f"right answers are taken to {golds.WORDS[kind]}; the data do not tell"
            note += f" (gold_is = {kind!r})"
    except golds.Contradiction as error:
        kinds = " or ".join(f'"{kind}"' for kind in ([error.kind] if error.kind else golds.KINDS))
        fix = f"gold_is = {kinds} in [fields] of {task.path.name}, or correct the data"
        raise BadText(f"{task.name}: {error}", where=task.path, fix=fix) from None
    return replace(task, fields=replace(task.fields, gold_is=kind)), note


def _gold_and_options(
    row: Mapping[str, Any], task: Definition, locale: Locale
) -> tuple[Any, Sequence[str]] | None:
    """Return a row's gold as it is and its options; None where it lacks one, or is no item."""
    values = {**row, "words": locale.words, "place": 0}
    try:
        options = _options(values, task)
        gold = template.whole(task.fields.gold, values) if task.fields.gold else None
    except (_Reject, KeyError):
        return None
    return (gold, options) if options and _texts(gold) else None


def make_items(
    rows: Sequence[Mapping[str, Any]], task: Definition, locale: Locale
) -> tuple[list[Item], dict[str, int]]:
    """Return the items in rows, in order, and how many rows are no items, by reason.

    `BadText` names a column of the definition that the data lack, or golds that disagree.
    """
    items: dict[str, Item] = {}
    rejected: Counter[str] = Counter()
    task, _ = with_gold_kind(rows, task, locale)
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
    if not (texts := _texts(raw)):
        raise _Reject(NO_GOLD)
    if not options:
        return texts, None
    right = golds.place(raw, task.fields.gold_is or golds.FROM_0, options)
    if right is None:
        raise _Reject(BAD_GOLD)
    return (options[right],), right


def _texts(raw: Any) -> tuple[str, ...]:
    texts = [str(g).strip() for g in (raw if isinstance(raw, list) else [raw]) if g is not None]
    return tuple(dict.fromkeys(filter(None, texts)))
