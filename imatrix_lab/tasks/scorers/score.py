"""What an answer is worth: from likelihoods or text to a score from 0 to 1."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from imatrix_lab.tasks.items import Item
from imatrix_lab.tasks.locale import Speech
from imatrix_lab.tasks.scorers import free_form, language, multiple_choice, numbers, translation
from imatrix_lab.tasks.scorers.multiple_choice import LETTERS
from imatrix_lab.types import ChoiceScores, Generated

METRICS_VERSION = 1
"""Raise it when the same answers give other scores. 1: first scorers."""


@dataclass(frozen=True)
class Outcome:
    """What came of an item.

    Attributes
    ----------
    score : 0 to 1; NaN where the item failed, which is not the same as wrong.
    parsed : whether an answer could be read at all; without one the score is 0.
    tie : several options were equally likely.
    cut : the answer has as many tokens as it may, and goes on.
    error : why it failed; empty otherwise.
    """

    id: str
    score: float
    prediction: str
    gold: str
    parsed: bool
    output: str = ""
    tie: bool = False
    cut: bool = False
    error: str = ""


def failed(item: Item, error: str) -> Outcome:
    """Return what came of an item that could not be scored."""
    return Outcome(item.id, math.nan, "", gold_of(item), False, error=error)


def gold_of(item: Item) -> str:
    """Return the right answer, as records have it: a letter for options."""
    return LETTERS[item.right] if item.right is not None else " | ".join(item.golds)


def of_likelihoods(item: Item, found: ChoiceScores, variant: str) -> Outcome:
    """Return what the likelihoods of an item's options say.

    The most likely option is chosen: by sum (``raw``, ``letter``), by mean over tokens (``token``)
    or over UTF-8 bytes (``byte``). Options that tie share the point.
    """
    if found.error:
        return failed(item, found.error)
    sizes = {"token": found.n_tokens, "byte": found.n_bytes}.get(variant)
    values = [
        total / sizes[i] if sizes and sizes[i] else total
        for i, total in enumerate(found.logprobs_nats)
    ]
    if len(values) != len(item.options) or not all(math.isfinite(v) for v in values):
        return failed(item, "no finite likelihood")
    best = [i for i, value in enumerate(values) if value == max(values)]
    score = 1 / len(best) if item.right in best else 0.0
    said = "=".join(LETTERS[i] for i in best)
    numbers_said = " ".join(f"{value:.4f}" for value in values)
    return Outcome(item.id, score, said, gold_of(item), True, numbers_said, tie=len(best) > 1)


def of_text(item: Item, found: Generated, scorer: str, speech: Speech) -> Outcome:
    """Return what an answer in free text is worth."""
    if found.error:
        return failed(item, found.error)
    outcome = _SCORERS[scorer](item, found.text, speech)
    return replace(outcome, cut=found.finish == "length")


def _mixeval(item: Item, answer: str, speech: Speech) -> Outcome:
    gold = gold_of(item)
    if item.options:
        option = multiple_choice.read(answer, item.options, speech).option
        said = "" if option is None else LETTERS[option]
        return Outcome(item.id, float(option == item.right), said, gold, option is not None, answer)
    match = free_form.match(answer, item.golds, speech)
    said = match.gold if match.is_right else " | ".join(match.keys)[:200]
    return Outcome(item.id, float(match.is_right), said, gold, bool(answer.strip()), answer)


def _number(item: Item, answer: str, speech: Speech) -> Outcome:
    found = numbers.answer(answer, speech.letter, speech.decimal, speech.groups)
    golds = [numbers.value(gold) for gold in item.golds]  # 1,000.5 in every language's file
    right = found is not None and found in golds
    said = "" if found is None else f"{found:g}"
    return Outcome(item.id, float(right), said, gold_of(item), found is not None, answer)


def _translation(item: Item, answer: str, speech: Speech) -> Outcome:
    said = answer.strip()
    score = translation.sentence_chrf(said, item.golds) if said else 0.0
    return Outcome(item.id, score, said, item.golds[0], bool(said), answer)


def _language(item: Item, answer: str, speech: Speech) -> Outcome:
    share = language.share(answer, speech)
    if share is None:
        return Outcome(item.id, 0.0, "", speech.code, False, answer)
    return Outcome(item.id, share.lines, share.words_said(), speech.code, True, answer)


_SCORERS: Mapping[str, Callable[[Item, str, Speech], Outcome]] = {
    "mixeval": _mixeval, "number": _number, "translation": _translation, "language": _language,
}  # fmt: skip
