"""A model as judge: its prompts, what its replies mean, and how far it agrees with the rules.

Grades follow MixEval's free-form scale, from 0 to 1 (Ni et al., 2024); preferences are asked twice,
the answers swapped, as judges favour a place (Zheng et al., 2023; arXiv 2407.03211 does so too).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import thoughts
from imatrix_lab.models.chat_template import unmarked
from imatrix_lab.tasks.chat import Chat, Messages, fenced, prompt_hash, reply_to
from imatrix_lab.tasks.locale import Locale

MAX_TOKENS = 512
"""A verdict is one line, but many judges explain themselves first."""
_SCORE = re.compile(r"^\W*score[^\w-]*(\d+(?:[.,]\d+)?)(?:\s*/\s*1(?:[.,]0)?)?\W*$", re.IGNORECASE)
_CHOICE = re.compile(r"^\W*choice\W*\s*(a|b|tie)\W*$", re.IGNORECASE)
_PREFERENCES = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Judgement:
    """What a judge replied to one prompt, or to both of a preference; `prompts` are hashes.

    `value` is a grade from 0 to 1, or the preference for the first quant (1), neither (0.5) or the
    second (0); NaN where the judge failed or its reply says nothing.
    """

    id: str
    kind: str
    value: float
    model: str
    prompts: tuple[str, ...]
    replies: tuple[str, ...]
    error: str = ""


def grade(row: Mapping[str, str], locale: Locale, chat: Chat) -> Judgement:
    """Ask how right an answer is; `UsageError` in a language without instructions for a judge."""
    messages = grade_prompt(row["prompt"], row["gold"], row["output"], locale)
    reply = reply_to(messages, chat, MAX_TOKENS)
    value = None if reply.error else read_grade(thoughts.answer(reply.text))
    error = reply.error or ("the reply has no score" if value is None else "")
    value = math.nan if value is None else value
    hashes = (prompt_hash(messages),)
    return Judgement(row["item_id"], "grade", value, chat.model, hashes, (reply.text,), error)


def prefer(row: Mapping[str, str], locale: Locale, chat: Chat) -> Judgement:
    """Ask which of two answers (`output` and `other`) is better, in both orders.

    Orders that disagree are a tie. One that fails leaves no judgement: the other alone would be
    biased by its order.
    """
    answers, item_id = (row["output"], row["other"]), row["item_id"]
    if answers[0].strip() == answers[1].strip():
        return Judgement(item_id, "prefer", 0.5, chat.model, (), ())
    prompts = [prefer_prompt(row["prompt"], pair, locale) for pair in (answers, answers[::-1])]
    replies = [reply_to(messages, chat, MAX_TOKENS) for messages in prompts]
    verdicts = (None if r.error else read_choice(thoughts.answer(r.text)) for r in replies)
    first, swapped = verdicts
    error = replies[0].error or replies[1].error
    value = math.nan
    if first is not None and swapped is not None:
        value = first if first == 1 - swapped else 0.5
    elif not error:
        error = "the reply has no choice"
    hashes, texts = tuple(map(prompt_hash, prompts)), tuple(reply.text for reply in replies)
    return Judgement(item_id, "prefer", value, chat.model, hashes, texts, error)


def grade_prompt(question: str, golds: str, answer: str, locale: Locale) -> Messages:
    """Return the prompt for a grade."""
    word = locale.words["answer"]
    parts = {locale.words["question"]: question, f"{word} (gold)": golds, word: answer}
    return _prompt(locale.judge.grade, parts, "Score:", locale)


def prefer_prompt(question: str, answers: tuple[str, str], locale: Locale) -> Messages:
    """Return the prompt for a preference."""
    word = locale.words["answer"]
    parts = {locale.words["question"]: question, f"{word} A": answers[0], f"{word} B": answers[1]}
    return _prompt(locale.judge.prefer, parts, "Choice:", locale)


def _prompt(instructions: str, parts: dict[str, str], ending: str, locale: Locale) -> Messages:
    if not instructions:
        fix = f"write [judge] in tasks/languages/{locale.code}.toml"
        raise UsageError(f"no judge's instructions in {locale.name}", fix=fix)
    quoted = (f"{name}:\n{fenced(unmarked(text))}" for name, text in parts.items())
    return (("user", "\n\n".join([instructions.strip(), *quoted, ending])),)


def read_grade(reply: str) -> float | None:
    """Return the grade in a reply; None unless it has just one, from 0 to 1."""
    values = {float(word.replace(",", ".")) for word in _verdicts(reply, _SCORE, "score: ")}
    return value if len(values) == 1 and 0 <= (value := values.pop()) <= 1 else None


def read_choice(reply: str) -> float | None:
    """Return the preference for A (1), B (0) or neither (0.5); None unless a reply has just one."""
    choices = {_PREFERENCES[word.lower()] for word in _verdicts(reply, _CHOICE, "choice: ")}
    return choices.pop() if len(choices) == 1 else None


def _verdicts(reply: str, pattern: re.Pattern[str], lead: str) -> list[str]:
    """Return the verdicts in a reply, a line each; the first may go on from the prompt's end."""
    lines = [line for line in reply.strip().splitlines() if line.strip()]
    matches = [match for line in lines if (match := pattern.match(line))]
    return [m[1] for m in matches or map(pattern.match, [lead + line for line in lines[:1]]) if m]


def kappa(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Cohen's kappa of two raters who call each item right (0.5 or more) or wrong.

    NaN without items, or where both say the same of all of them, as chance would have it too.
    """
    pairs = [(x >= 0.5, y >= 0.5) for x, y in zip(a, b, strict=True)]
    if not pairs:
        return math.nan
    observed = fmean(x == y for x, y in pairs)
    p, q = fmean(x for x, _ in pairs), fmean(y for _, y in pairs)
    chance = p * q + (1 - p) * (1 - q)
    return math.nan if chance == 1 else (observed - chance) / (1 - chance)
