"""A model as judge: its prompts, what its replies mean, and how far it agrees with the rules.

Grades follow MixEval's free-form scale, from 0 to 1 (Ni et al., 2024); preferences are asked twice,
the answers swapped, as judges favour a place (Zheng et al., 2023; arXiv 2407.03211 does so too).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from imatrix_lab.errors import UsageError
from imatrix_lab.models.chat_template import unmarked
from imatrix_lab.tasks.chat import Chat, Messages, fenced, prompt_hash
from imatrix_lab.tasks.locale import Speech

MAX_TOKENS = 512
"""A verdict is one line, but many judges explain themselves first."""
_SCORE = re.compile(r"^\W*score[^\w-]*(\d+(?:[.,]\d+)?)(?:\s*/\s*1(?:[.,]0)?)?\W*$", re.IGNORECASE)
_CHOICE = re.compile(r"^\W*choice\W*\s*(a|b|tie)\W*$", re.IGNORECASE)


@dataclass(frozen=True)
class Judgement:
    """One reply of a judge.

    Attributes
    ----------
    value : grade from 0 to 1, or the preference for the first quant (1), neither (0.5) or the
        second (0); NaN where the judge failed or its reply says nothing.
    prompts, replies : hash of each prompt, and each reply as it came: two for a preference.
    """

    id: str
    kind: str
    value: float
    model: str
    prompts: tuple[str, ...]
    replies: tuple[str, ...]
    error: str = ""


def grade(
    item_id: str, question: str, golds: str, answer: str, speech: Speech, chat: Chat
) -> Judgement:
    """Ask how right an answer is.

    Raises
    ------
    UsageError : nobody has written a judge's prompts in this language.
    """
    messages = grade_prompt(question, golds, answer, speech)
    reply = chat.chat(messages, MAX_TOKENS)
    value = None if reply.error else read_grade(reply.text)
    return Judgement(
        item_id, "grade", math.nan if value is None else value, chat.model,
        (prompt_hash(messages),), (reply.text,),
        reply.error or ("" if value is not None else "the reply has no score"),
    )  # fmt: skip


def prefer(
    item_id: str, question: str, answers: tuple[str, str], speech: Speech, chat: Chat
) -> Judgement:
    """Ask which of two answers is better, in both orders.

    Orders that disagree are a tie. One that fails leaves no judgement: the other alone would be
    biased by its order.
    """
    if answers[0].strip() == answers[1].strip():
        return Judgement(item_id, "prefer", 0.5, chat.model, (), ())
    asked = [prefer_prompt(question, pair, speech) for pair in (answers, answers[::-1])]
    replies = [chat.chat(messages, MAX_TOKENS) for messages in asked]
    said = [None if r.error else read_choice(r.text) for r in replies]
    errors = [r.error for r in replies if r.error]
    if None in said and not errors:
        errors = ["the reply has no choice"]
    value = math.nan
    if said[0] is not None and said[1] is not None:
        value = _both(said[0], {"A": "B", "B": "A", "tie": "tie"}[said[1]])
    return Judgement(
        item_id, "prefer", value, chat.model, tuple(map(prompt_hash, asked)),
        tuple(r.text for r in replies), errors[0] if errors else "",
    )  # fmt: skip


def _both(first: str, second: str) -> float:
    """Return the preference for A of two verdicts on the same pair."""
    worth = {"A": 1.0, "B": 0.0, "tie": 0.5}
    return worth[first] if first == second else 0.5


def grade_prompt(question: str, golds: str, answer: str, speech: Speech) -> Messages:
    """Return the prompt for a grade."""
    words = speech.words
    parts = [
        _instructions(speech, "grade"),
        f"{words['question']}:\n{_quoted(question)}",
        f"{words['answer']} (gold):\n{_quoted(golds)}",
        f"{words['answer']}:\n{_quoted(answer)}",
        "Score:",
    ]
    return (("user", "\n\n".join(parts)),)


def prefer_prompt(question: str, answers: tuple[str, str], speech: Speech) -> Messages:
    """Return the prompt for a preference."""
    words = speech.words
    parts = [
        _instructions(speech, "prefer"),
        f"{words['question']}:\n{_quoted(question)}",
        f"{words['answer']} A:\n{_quoted(answers[0])}",
        f"{words['answer']} B:\n{_quoted(answers[1])}",
        "Choice:",
    ]
    return (("user", "\n\n".join(parts)),)


def _quoted(text: str) -> str:
    return fenced(unmarked(text))


def _instructions(speech: Speech, name: str) -> str:
    if name not in speech.judge:
        raise UsageError(
            f"there is no judge's prompt in {speech.name}",
            fix=f"write [judge] in tasks/languages/{speech.code}.toml",
        )
    return speech.judge[name].strip()


def read_grade(reply: str) -> float | None:
    """Return the grade in a reply; None unless it has just one, from 0 to 1."""
    found = {match[1].replace(",", ".") for match in _lines(reply, _SCORE, "score: ")}
    values = {float(word) for word in found}
    return value if len(values) == 1 and 0 <= (value := values.pop()) <= 1 else None


def read_choice(reply: str) -> str | None:
    """Return A, B or tie; None unless a reply has just one of them."""
    found = {match[1].lower() for match in _lines(reply, _CHOICE, "choice: ")}
    return {"a": "A", "b": "B", "tie": "tie"}[found.pop()] if len(found) == 1 else None


def _lines(reply: str, pattern: re.Pattern[str], lead: str) -> list[re.Match[str]]:
    """Return the lines of a reply that are verdicts; the first may go on from the prompt's end."""
    lines = [line for line in reply.strip().splitlines() if line.strip()]
    found = [match for line in lines if (match := pattern.match(line))]
    if not found and lines and (match := pattern.match(lead + lines[0])):
        return [match]
    return found


def kappa(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Cohen's kappa of two raters who call each item right (0.5 or more) or wrong.

    Returns
    -------
    NaN without items, or where both say the same of all of them, as chance would have it too.
    """
    n = len(a)
    if not n:
        return math.nan
    one, other = [x >= 0.5 for x in a], [x >= 0.5 for x in b]
    observed = sum(x == y for x, y in zip(one, other, strict=True)) / n
    p, q = sum(one) / n, sum(other) / n
    chance = p * q + (1 - p) * (1 - q)
    return math.nan if chance == 1 else (observed - chance) / (1 - chance)
