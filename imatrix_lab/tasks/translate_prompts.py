"""A task in another language: every text translated once, gold answers kept consistent.

Numbers, letters and places of options stay as they are. A gold answer or an option is translated
beside what it belongs to, translated already: the context that has it word for word, else the
question. The same prompt is asked once. What looks wrong is flagged for a person to review.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imatrix_lab.llamacpp import thoughts
from imatrix_lab.tasks import template
from imatrix_lab.tasks.chat import Chat, Messages, fenced, prompt_hash, reply_to
from imatrix_lab.tasks.definition import Definition
from imatrix_lab.tasks.locale import Locale
from imatrix_lab.tasks.scorers import numbers

MAX_TOKENS = 2048
LENGTH_RATIO_MAX = 4
_SHORT = 40


@dataclass(frozen=True)
class Translation:
    """One text and its translation, or the source if there is an error; `flags` are to review."""

    id: str
    field: str
    source: str
    text: str
    flags: tuple[str, ...] = ()
    error: str = ""


def columns(task: Definition) -> dict[str, str]:
    """Return which columns hold text to translate, and the field of each."""
    fields, options = task.fields, [("options", text) for text in task.fields.options]
    templates = [("context", fields.context), ("question", fields.question), *options]
    templates.append(("gold", fields.gold))
    by_column = {column: name for name, text in templates for column in template.places(text)}
    return {c: name for c, name in by_column.items() if c not in ("words", "beside")}


def texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the texts of a row as (field, text), without numbers, letters and golds of options."""
    has_options = any(field == "options" and row.get(c) for c, field in columns.items())
    return [
        (field, text)
        for column, field in columns.items()
        if not (field == "gold" and has_options)
        for text in _listed(row.get(column))
        if isinstance(text, str)
        and re.search(r"[^\W\d_]", text)
        and not re.fullmatch(r"\(?[A-Z]\)?\.?", text.strip())  # a letter
    ]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def prompt(field: str, text: str, beside: str, locale: Locale) -> Messages:
    """Return the prompt for one text, with what it belongs to in the language itself."""
    parts = [locale.words["translate"]]
    if field in ("gold", "options") and beside:
        parts += [fenced(beside), f"{locale.words['answer']}:"]
    return (("user", "\n\n".join([*parts, fenced(text)])),)


def translate(field: str, source: str, messages: Messages, chat: Chat) -> Translation:
    """Return the translation of one text by its `prompt`."""
    reply = reply_to(messages, chat, MAX_TOKENS)
    lines = (
        thoughts.answer(reply.text).strip().splitlines()
    )  # without the fence that it may have repeated
    text = "\n".join(x for x in lines if not re.match(r"----- \w{12} -----", x)).strip()
    cut = "the answer was cut off" if reply.finish == "length" else ""
    key = key_of(messages, chat)
    if error := reply.error or (cut if text else "an empty answer"):
        return Translation(key, field, source, source, error=error)
    return Translation(key, field, source, text, flags_of(field, source, text))


def key_of(messages: Messages, chat: Chat) -> str:
    """Return the hash by which a translation is recognized."""
    return prompt_hash(messages, f"{chat.model}\0{chat.identity}")


def flags_of(field: str, source: str, text: str) -> tuple[str, ...]:
    """Return what a person should look at in a translation."""
    runs = (re.findall(r"\d+", numbers.plain_digits(words)) for words in (text, source))
    digits, old_digits = map(sorted, runs)
    is_long = len(source) > _SHORT
    flags = {
        "not translated": is_long and source.strip() == text,
        "numbers differ": digits != old_digits,
        "length": is_long and not 1 / LENGTH_RATIO_MAX < len(text) / len(source) < LENGTH_RATIO_MAX,
        "more than an answer": field in ("gold", "options") and "\n" in text and "\n" not in source,
        "gap lost": source.count("_") != text.count("_"),
        "speaks of marks of thoughts": thoughts.has_marks(source),  # they may have cut the text
    }
    return tuple(name for name, is_raised in flags.items() if is_raised)


def apply(
    row: Mapping[str, Any], columns: Mapping[str, str], by_text: Mapping[str, str]
) -> dict[str, Any]:
    """Return a row with its texts replaced."""

    def new(value: Any) -> Any:
        if isinstance(value, list):
            return [new(entry) for entry in value]
        return by_text.get(value, value) if isinstance(value, str) else value

    return {column: new(value) if column in columns else value for column, value in row.items()}


def inconsistent(
    row: Mapping[str, Any], new: Mapping[str, Any], columns: Mapping[str, str]
) -> Iterator[str]:
    """Yield what no longer holds in a translated row: a gold in its context, distinct options."""
    texts = [(field, _listed(row.get(c)), _listed(new.get(c))) for c, field in columns.items()]
    contexts = [(str(row.get(c) or "").casefold(), str(new.get(c) or "").casefold())
                for c, field in columns.items() if field == "context"]  # fmt: skip
    for field, old_golds, golds in texts:
        for old, gold in zip(old_golds, golds, strict=True) if field == "gold" else ():
            if isinstance(old, str) and any(
                old.casefold() in before and gold.casefold() not in after
                for before, after in contexts
            ):
                yield f"gold {gold!r} is not in the context any more"
    for field, old_options, options in texts:
        if field == "options" and len(set(map(str, options))) < len(set(map(str, old_options))):
            yield "two options have become the same"
