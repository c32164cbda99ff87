"""Prompts: an item in the words of its language, for likelihoods or for an answer in free text."""

from collections.abc import Sequence
from typing import Any

from imatrix_lab.errors import UsageError
from imatrix_lab.models import chat_template
from imatrix_lab.tasks import template
from imatrix_lab.tasks.definition import Definition
from imatrix_lab.tasks.items import Item
from imatrix_lab.tasks.locale import Speech
from imatrix_lab.tasks.scorers.multiple_choice import LETTERS
from imatrix_lab.types import ChoiceItem, GenerateItem

_INSTRUCTIONS = {"number": "steps", "translation": "translate", "language": ""}
_ENDS = {"mixeval": ("\n{answer}:",), "translation": ("\n",)}
"""What ends a plain answer beside another question, by scorer: see `ends`."""


def ask(item: Item, definition: Definition, speech: Speech, with_letters: bool) -> str:
    """Return the text that asks an item.

    A line is left out when it is about a context or an instruction that is not there, or about
    letters when options are scored by their words.

    Raises
    ------
    UsageError : the language has no such word.
    """
    values: dict[str, Any] = {
        **item.row, "words": speech.words, "context": item.context, "question": item.question,
        "lettered": _lettered(item.options) if with_letters else "",
        "instruction": _instruction(item, definition, speech),
    }  # fmt: skip
    lines = []
    for line in definition.ask.strip("\n").split("\n"):
        optional = {"context", "lettered", "instruction"} & set(template.places(line))
        if all(values[name] for name in optional):
            lines.append(_filled(line, values, definition, speech))
    return "\n".join(lines)


def choice_item(
    item: Item, definition: Definition, speech: Speech, variant: str, prefix: str = ""
) -> ChoiceItem:
    """Return an item for scoring by likelihood; options are letters, or their words."""
    by_letter = variant == "letter"
    options = LETTERS[: len(item.options)] if by_letter else item.options
    return ChoiceItem(
        item.id, prefix, ask(item, definition, speech, by_letter),
        tuple(_spaced(option, speech) for option in options),
    )  # fmt: skip


def generate_item(
    item: Item, definition: Definition, speech: Speech, prefix: str = "", is_chat: bool = True
) -> GenerateItem:
    """Return an item to be answered in free text.

    Parameters
    ----------
    is_chat : the model has a template for chats. Without one the text ends where the answer
        begins, and the answer where another begins.
    """
    text = chat_template.unmarked(prefix + ask(item, definition, speech, True))
    if is_chat:
        return GenerateItem(item.id, (("user", text),), definition.max_tokens, definition.stop)
    said = ("", _opened(text, speech))
    return GenerateItem(item.id, (said,), definition.max_tokens, ends(definition, speech))


def ends(definition: Definition, speech: Speech) -> tuple[str, ...]:
    """Return what ends an answer of a model without a template for chats, which would go on."""
    own = ("\n{question}:", *_ENDS.get(definition.scorer, ()))
    words = (end.format(**speech.words) for end in own)
    return tuple(dict.fromkeys((*definition.stop, *words)))


def _opened(text: str, speech: Speech) -> str:
    """Return a text that ends with what opens an answer."""
    opening = f"{speech.words['answer']}:"
    return text if text.endswith(opening) else f"{text}\n{opening}"


def _spaced(answer: str, speech: Speech) -> str:
    """Return what follows a prompt; a letter of an option has a space in every language."""
    is_letter = len(answer) == 1 and answer in LETTERS
    return f" {answer}" if speech.spaces or is_letter else answer


def examples(
    items: Sequence[Item], definition: Definition, speech: Speech, variant: str, n: int
) -> tuple[str, list[Item]]:
    """Return a prefix of n solved items, and the items that are left to score.

    The examples are the first of each of the first clusters; nothing of their clusters is scored.
    """
    chosen: dict[str, Item] = {}
    for item in items:
        if len(chosen) < n and item.golds:
            chosen.setdefault(item.cluster, item)
    if len(chosen) < n:
        raise UsageError(f"{definition.name} has too few items for {n} examples")
    texts = []
    for item in chosen.values():
        text = ask(item, definition, speech, variant == "letter" or definition.generates())
        text = _opened(text, speech) if definition.generates() else text
        texts.append(f"{text}{_spaced(_solution(item, variant), speech)}\n\n")
    return "".join(texts), [item for item in items if item.cluster not in chosen]


def _solution(item: Item, variant: str) -> str:
    if variant == "letter" and item.right is not None:
        return LETTERS[item.right]
    return item.golds[0]


def _lettered(options: Sequence[str]) -> str:
    return "\n".join(f"{LETTERS[i]}. {option}" for i, option in enumerate(options))


def _instruction(item: Item, definition: Definition, speech: Speech) -> str:
    word = _INSTRUCTIONS.get(definition.scorer, "choose" if item.options else "short")
    return speech.words.get(word, "") if word else ""


def _filled(line: str, values: dict[str, Any], definition: Definition, speech: Speech) -> str:
    try:
        return template.fill(line, values)
    except KeyError as error:
        raise UsageError(
            f"the prompt of {definition.name} needs {error}, which neither its data nor the words"
            f" of {speech.code!r} have",
            where=definition.path, fix=f"add it to tasks/languages/{speech.code}.toml",
        ) from error  # fmt: skip
