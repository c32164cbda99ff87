"""Prompts: an item in the words of its language, for likelihoods or for an answer in free text."""

from collections.abc import Sequence

from imatrix_lab.errors import UsageError
from imatrix_lab.models import chat_template
from imatrix_lab.tasks import template
from imatrix_lab.tasks.definition import Definition
from imatrix_lab.tasks.items import Item
from imatrix_lab.tasks.locale import Locale
from imatrix_lab.tasks.scorers.multiple_choice import LETTERS
from imatrix_lab.types import ChoiceItem, GenerateItem

_INSTRUCTIONS = {"number": "steps", "translation": "translate", "language": ""}
_STOPS = {"mixeval": ("\n{answer}:",), "translation": ("\n",)}
"""What ends a plain answer beside another question, by scorer: see `stops`."""


def ask(item: Item, task: Definition, locale: Locale, with_letters: bool) -> str:
    """Return the text that asks an item.

    A line about a context or an instruction is left out where there is none, and so is one about
    letters where options are scored by their words. `UsageError` names a word that the language
    lacks.
    """
    instruction = _INSTRUCTIONS.get(task.scorer, "choose" if item.options else "short")
    letters = zip(LETTERS, item.options, strict=False) if with_letters else ()
    optional = {
        "context": item.context,
        "lettered": "\n".join(f"{letter}. {option}" for letter, option in letters),
        "instruction": locale.words.get(instruction, ""),
    }
    values = {**item.row, **optional, "words": locale.words, "question": item.question}
    lines = [
        line
        for line in task.prompt.ask.strip("\n").split("\n")
        if all(optional.get(name, True) for name in template.places(line))
    ]
    try:
        return "\n".join(template.fill(line, values) for line in lines)
    except KeyError as error:
        what = f"the prompt of {task.name} needs {error}; neither its data nor the language have it"
        fix = f"add it to tasks/languages/{locale.code}.toml"
        raise UsageError(what, where=task.path, fix=fix) from error


def choice_item(
    item: Item, task: Definition, locale: Locale, variant: str, prefix: str = ""
) -> ChoiceItem:
    """Return an item for scoring by likelihood; options are letters, or their words."""
    by_letter = variant == "letter"
    options = LETTERS[: len(item.options)] if by_letter else item.options
    spaced = tuple(_spaced(option, locale) for option in options)
    return ChoiceItem(item.id, prefix, ask(item, task, locale, by_letter), spaced)


def generate_item(
    item: Item, task: Definition, locale: Locale, prefix: str = "", is_chat: bool = True,
    thought_tokens: int = 0,
) -> GenerateItem:  # fmt: skip
    """Return an item to be answered in free text, which a model without a template continues."""
    text = chat_template.unmarked(prefix + ask(item, task, locale, True))
    role, stop = "user", task.prompt.stop
    if not is_chat:
        role, stop, text = "", stops(task, locale), _opened(text, locale)
    most, thinking = task.prompt.max_tokens, task.prompt.enable_thinking
    return GenerateItem(item.id, ((role, text),), most, stop, thinking, thought_tokens)


def stops(task: Definition, locale: Locale) -> tuple[str, ...]:
    """Return what ends an answer of a model without a chat template, which would go on."""
    ends = ("\n{question}:", *_STOPS.get(task.scorer, ()))
    return tuple(dict.fromkeys((*task.prompt.stop, *(e.format(**locale.words) for e in ends))))


def _opened(text: str, locale: Locale) -> str:
    opening = f"{locale.words['answer']}:"
    return text if text.endswith(opening) else f"{text}\n{opening}"


def _spaced(answer: str, locale: Locale) -> str:
    """Return what follows a prompt; a letter of an option has a space in every language."""
    is_letter = len(answer) == 1 and answer in LETTERS
    return f" {answer}" if locale.spaces or is_letter else answer


def examples(
    items: Sequence[Item], task: Definition, locale: Locale, variant: str, n: int
) -> tuple[str, list[Item]]:
    """Return a prefix of n solved items, and the items that are left to score.

    The examples are the first of each of the first clusters; nothing of their clusters is scored.
    """
    chosen: dict[str, Item] = {}
    for item in items:
        if len(chosen) < n and item.golds:
            chosen.setdefault(item.cluster, item)
    if len(chosen) < n:
        raise UsageError(f"{task.name} has too few items for {n} examples")
    prefix, by_letter = "", variant == "letter"
    for item in chosen.values():
        text = ask(item, task, locale, by_letter or task.generates())
        text = _opened(text, locale) if task.generates() else text
        gold = LETTERS[item.right] if by_letter and item.right is not None else item.golds[0]
        prefix += f"{text}{_spaced(gold, locale)}\n\n"
    return prefix, [item for item in items if item.cluster not in chosen]
