"""A task in another language: every text translated once, gold answers kept consistent.

Numbers, letters and places of options stay as they are. A gold answer or an option is translated
beside what it belongs to, translated already: the context that has it word for word, else the
question. The same prompt is asked once. What looks wrong is flagged for a person to review.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imatrix_lab.tasks import template
from imatrix_lab.tasks.chat import Chat, Messages, fenced, prompt_hash
from imatrix_lab.tasks.definition import Definition
from imatrix_lab.tasks.locale import Speech
from imatrix_lab.tasks.scorers import numbers
from imatrix_lab.types import Generated

MAX_TOKENS = 2048
LENGTH_RATIO_MAX = 4
_SHORT = 40


@dataclass(frozen=True)
class Translation:
    """One text and what became of it.

    Attributes
    ----------
    id : hash of the prompt and the model, by which a repeated text is found again.
    flags : what a person should look at.
    error : why there is none; the source is left in its place.
    """

    id: str
    field: str
    source: str
    text: str
    flags: tuple[str, ...] = ()
    error: str = ""


def columns(definition: Definition) -> dict[str, str]:
    """Return which columns hold text to translate, and what each is."""
    found: dict[str, str] = {}
    fields = definition.fields
    for name in ("context", "question", "options", "gold"):
        if name == "gold" and fields.get("gold_is", "text") != "text" and name in fields:
            found |= dict.fromkeys(template.places(fields["gold"]), "gold")
            continue
        templates = fields.get(name, [])
        for one in [templates] if isinstance(templates, str) else templates:
            kinds = dict.fromkeys(template.places(one), name)
            found |= {c: k for c, k in kinds.items() if c not in ("words", "beside")}
    return found


def texts(row: Mapping[str, Any], wanted: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the texts of a row as (field, text); numbers, and golds of options, are none.

    A gold answer that names an option by its place or letter is left out with them.
    """
    has_options = any(kind == "options" and row.get(c) for c, kind in wanted.items())
    found = []
    for column, kind in wanted.items():
        if kind == "gold" and has_options:
            continue
        value = row.get(column)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and re.search(r"[^\W\d_]", text) and not _is_letter(text):
                found.append((kind, text))
    return found


def _is_letter(text: str) -> bool:
    return re.fullmatch(r"\(?[A-Z]\)?\.?", text.strip()) is not None


def prompt(kind: str, text: str, beside: str, speech: Speech) -> Messages:
    """Return the prompt for one text, with what it belongs to in the language itself."""
    parts = [speech.words["translate"]]
    if kind in ("gold", "options") and beside:
        parts += [fenced(beside), f"{speech.words['answer']}:"]
    return (("user", "\n\n".join([*parts, fenced(text)])),)


def translate(kind: str, text: str, messages: Messages, chat: Chat) -> Translation:
    """Return the translation of one text by its `prompt`."""
    found: Generated = chat.chat(messages, MAX_TOKENS)
    said = _unwrapped(found.text)
    error = found.error or ("" if said else "an empty answer")
    if not error and found.finish == "length":
        error = "the answer was cut off"
    flags = () if error else flags_of(kind, text, said)
    return Translation(key_of(messages, chat), kind, text, text if error else said, flags, error)


def key_of(messages: Messages, chat: Chat) -> str:
    """Return the hash by which a translation is found again."""
    return prompt_hash(messages, f"{chat.model}\0{chat.identity}")


def _unwrapped(reply: str) -> str:
    """Return a reply without the fence that it may have repeated."""
    lines = [
        line for line in reply.strip().splitlines() if not re.match(r"----- \w{12} -----", line)
    ]
    return "\n".join(lines).strip()


def flags_of(kind: str, source: str, text: str) -> tuple[str, ...]:
    """Return what a person should look at in a translation."""
    found = []
    if source.strip() == text and len(source) > _SHORT:
        found.append("not translated")
    digits = [sorted(re.findall(r"\d+", numbers.plain_digits(one))) for one in (source, text)]
    if digits[0] != digits[1]:
        found.append("numbers differ")
    if len(source) > _SHORT and not (
        1 / LENGTH_RATIO_MAX < len(text) / len(source) < LENGTH_RATIO_MAX
    ):
        found.append("length")
    if kind in ("gold", "options") and "\n" in text and "\n" not in source:
        found.append("more than an answer")
    if source.count("_") != text.count("_"):
        found.append("gap lost")
    return tuple(found)


def apply(
    row: Mapping[str, Any], wanted: Mapping[str, str], by_text: Mapping[str, str]
) -> dict[str, Any]:
    """Return a row with its texts replaced."""
    done = dict(row)
    for column in wanted:
        value = row.get(column)
        if isinstance(value, list):
            done[column] = [by_text.get(one, one) if isinstance(one, str) else one for one in value]
        elif isinstance(value, str):
            done[column] = by_text.get(value, value)
    return done


def inconsistent(
    row: Mapping[str, Any], done: Mapping[str, Any], wanted: Mapping[str, str]
) -> list[str]:
    """Return what no longer holds in a translated row: a gold in its context, distinct options."""
    found = []
    contexts = [c for c, kind in wanted.items() if kind == "context"]
    golds = [c for c, kind in wanted.items() if kind == "gold"]
    for before, after in _golds(row, done, golds):
        for column in contexts:
            was = str(row.get(column) or "").casefold()
            now = str(done.get(column) or "").casefold()
            if before.casefold() in was and after.casefold() not in now:
                found.append(f"gold {after!r} is not in the context any more")
    for column, kind in wanted.items():
        options = done.get(column)
        if kind == "options" and isinstance(options, list):
            old = row[column]
            if len(set(map(str, options))) < len(set(map(str, old))):
                found.append("two options have become the same")
    return list(dict.fromkeys(found))


def _golds(
    row: Mapping[str, Any], done: Mapping[str, Any], columns_: Sequence[str]
) -> list[tuple[str, str]]:
    pairs = []
    for column in columns_:
        before, after = row.get(column), done.get(column)
        if isinstance(before, list) and isinstance(after, list):
            pairs += [
                p for p in zip(before, after, strict=True) if all(isinstance(x, str) for x in p)
            ]
        elif isinstance(before, str) and isinstance(after, str):
            pairs.append((before, after))
    return pairs
