"""What an answer is worth: from likelihoods or text to a score from 0 to 1."""

import math
from dataclasses import dataclass, replace

from imatrix_lab.llamacpp import thoughts
from imatrix_lab.tasks.items import Item
from imatrix_lab.tasks.locale import Locale
from imatrix_lab.tasks.scorers import free_form, language, multiple_choice, numbers, translation
from imatrix_lab.tasks.scorers.multiple_choice import LETTERS
from imatrix_lab.types import ChoiceScores, Generated

METRICS_VERSION, TEXT_METRICS_VERSION = 1, 2
"""Of likelihoods, and of answers in free text; raised when the same answers give other scores.

1: first scorers. 2: thoughts are no part of an answer.
"""


@dataclass(frozen=True)
class Outcome:
    """An item's score from 0 to 1; NaN where the item failed (`error`), which is not wrong.

    An answer that could not be read is not `parsed` and scores 0; one that is `cut` has as many
    tokens as it may.
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
    """Return the outcome of an item that could not be scored."""
    return Outcome(item.id, math.nan, "", gold_of(item), False, error=error)


def gold_of(item: Item) -> str:
    """Return the right answer, as records have it: a letter for options."""
    return LETTERS[item.right] if item.right is not None else " | ".join(item.golds)


def of_likelihoods(item: Item, scores: ChoiceScores, variant: str) -> Outcome:
    """Score an item by the likelihoods of its options.

    The most likely option is chosen: by sum (``raw``, ``letter``), by mean over tokens (``token``)
    or over UTF-8 bytes (``byte``). Options that tie share the point.
    """
    if scores.error:
        return failed(item, scores.error)
    totals = scores.logprobs_nats
    sizes = {"token": scores.n_tokens, "byte": scores.n_bytes}.get(variant, [1] * len(totals))
    values = [total / (size or 1) for total, size in zip(totals, sizes, strict=False)]
    if len(values) != len(item.options) or not all(map(math.isfinite, values)):
        return failed(item, "no finite likelihood")
    best = [i for i, value in enumerate(values) if value == max(values)]
    score = 1 / len(best) if item.right in best else 0.0
    prediction = "=".join(LETTERS[i] for i in best)
    output = " ".join(f"{value:.4f}" for value in values)
    return Outcome(item.id, score, prediction, gold_of(item), True, output, tie=len(best) > 1)


def within_thoughts(outcome: Outcome) -> Outcome:
    """Return the outcome of an answer that turned out to be thoughts, begun by the prompt."""
    output = f"<think>\n{outcome.output}"
    return replace(outcome, score=0.0, prediction="", parsed=False, output=output)


def of_text(item: Item, answer: Generated, scorer: str, locale: Locale) -> Outcome:
    """Score an answer in free text, without the thoughts before it."""
    if answer.error:
        return failed(item, answer.error)
    translated = {"translation": _translation, "language": _language}
    scorers = {"mixeval": _mixeval, "number": _number, **translated}
    outcome = scorers[scorer](item, thoughts.answer(answer.text), locale)
    return replace(outcome, output=answer.text, cut=answer.finish == "length")


def _mixeval(item: Item, answer: str, locale: Locale) -> Outcome:
    gold = gold_of(item)
    if item.options:
        option = multiple_choice.read(answer, item.options, locale).option
        letter = "" if option is None else LETTERS[option]
        score = float(option == item.right)
        return Outcome(item.id, score, letter, gold, option is not None, answer)
    match = free_form.match(answer, item.golds, locale)
    prediction = match.gold if match.is_right else " | ".join(match.keys)[:200]
    return Outcome(item.id, float(match.is_right), prediction, gold, bool(answer.strip()), answer)


def _number(item: Item, answer: str, locale: Locale) -> Outcome:
    number = numbers.answer(answer, locale.answer.letter, locale.numbers)
    if number is None:
        return Outcome(item.id, 0.0, "", gold_of(item), False, answer)
    golds = [numbers.value(gold) for gold in item.golds]  # 1,000.5 in every language's file
    return Outcome(item.id, float(number in golds), f"{number:g}", gold_of(item), True, answer)


def _translation(item: Item, answer: str, locale: Locale) -> Outcome:
    text = answer.strip()
    score = translation.sentence_chrf(text, item.golds) if text else 0.0
    return Outcome(item.id, score, text, item.golds[0], bool(text), answer)


def _language(item: Item, answer: str, locale: Locale) -> Outcome:
    share = language.share(answer, locale)
    if share is None:
        return Outcome(item.id, 0.0, "", locale.code, False, answer)
    shares = f"lines {share.lines:.3f}, words {share.words:.3f} of {share.n_lines} lines"
    return Outcome(item.id, share.lines, shares, locale.code, True, answer)
