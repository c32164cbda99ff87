"""A model as judge of the pairs that people vote on, and how far it agrees with them.

A judge says something of a language only where it agrees with people who speak it: fewer than
`VOTES_MIN` of their votes leave its verdict not validated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from imatrix_lab.core.progress import Progress
from imatrix_lab.publish.preference import pack
from imatrix_lab.publish.preference.pack import Key
from imatrix_lab.stats import agreement, preference
from imatrix_lab.stats.agreement import Kappa
from imatrix_lab.stats.preference import MeanPreference
from imatrix_lab.tasks import judge, judge_prompts, records
from imatrix_lab.tasks.chat import Chat
from imatrix_lab.tasks.journal import Journal
from imatrix_lab.tasks.judge_prompts import Judgement
from imatrix_lab.tasks.locale import Locale, get_locale

VOTES_MIN = 50
"""With fewer votes of people nothing is said of whether a judge agrees with them."""
JUDGED = ".judge."

Verdicts = Mapping[frozenset[str], float]
"""By the hashes of two answers: 1 for the first system's, 0 for the other's, 0.5 for neither."""


@dataclass(frozen=True)
class Opinion:
    """A person's vote on systems a and b; `prompt` and `rater` are numbers.

    `choice` is from 2 (a is much better) to -2; None: could not judge.
    """

    prompt: int
    rater: int
    a: str
    b: str
    answers: frozenset[str]
    choice: int | None


@dataclass(frozen=True)
class JudgedPair:
    """A judge's verdicts on two systems; the difference is A's share of wins less B's."""

    a: str
    b: str
    n_wins_a: int
    n_ties: int
    n_wins_b: int
    n_identical: int
    difference: MeanPreference


@dataclass(frozen=True)
class Judge:
    """A model's verdicts on a page, and its agreement with people: first, neither or second.

    Attributes
    ----------
    n_votes : people's votes on what it judged.
    is_validated : enough people voted to say how far it agrees with them.
    kappa_people : Cohen's kappa of any two people; NaN if no two judged the same pair.
    """

    model: str
    pairs: tuple[JudgedPair, ...]
    n_votes: int
    is_validated: bool
    kappa: Kappa
    kappa_people: float


def locale_of(key: Key) -> Locale:
    """Return a judge's language; UsageError: nobody has written its instructions."""
    locale = get_locale(key.language)
    judge_prompts.prefer_prompt("", ("", ""), locale)  # raises
    return locale


def ask(key: Key, key_path: Path, chat: Chat, progress: Progress) -> Path:
    """Let a judge compare each pair in both orders; return the file of its judgements.

    Pairs without a verdict are counted and told, and asked again by the next call.

    Raises UsageError: there are no instructions for a judge in the language; ImatrixLabError: it
    gives no verdict at all.
    """
    rows = [
        {
            "item_id": f"{first} {second}",
            "prompt": key.prompts[key.answers[first]["prompt"]],
            "output": key.answers[first]["text"],
            "other": key.answers[second]["text"],
        }
        for first, second in pack.pairs(key)
    ]
    file = key_path.with_name(f"{_stem(key_path)}{JUDGED}{records.name_part(chat.model)}.jsonl")
    judged = judge.judged(rows, judge_prompts.prefer, file, chat, locale_of(key), progress)
    for reason, n in records.error_classes([j.error for j in judged]).items():
        progress.say(f"note: no verdict on {n} of {len(judged)} pairs: {reason}")
    return file


def read(key: Key, key_path: Path) -> Mapping[str, Verdicts]:
    """Return the verdicts on a page by judge, from the files beside its key."""
    known = {f"{first} {second}": frozenset((first, second)) for first, second in pack.pairs(key)}
    verdicts: dict[str, dict[frozenset[str], float]] = {}
    for file in sorted(key_path.parent.glob(f"{_stem(key_path)}{JUDGED}*.jsonl")):
        journal = Journal(file, Judgement)
        for name, pair in known.items():
            if judgement := journal.get(name):
                verdicts.setdefault(judgement.model, {})[pair] = judgement.value
    return verdicts


def _stem(key_path: Path) -> str:
    return key_path.name.removesuffix(".json").removesuffix(".key")


def compare(model: str, verdicts: Verdicts, opinions: Sequence[Opinion], key: Key) -> Judge:
    """Return what a judge says of each two systems, and how far it agrees with people."""
    judged = [_pair(a, b, verdicts, key) for a, b in combinations(sorted(key.systems), 2)]
    numbers = {pair: i for i, pair in enumerate(verdicts)}
    rows = [
        (np.sign(o.choice) + 1, 2 * verdicts[o.answers], o.prompt, o.rater, numbers[o.answers])
        for o in opinions
        if o.choice is not None and o.answers in verdicts
    ]
    people, judges, prompts, raters, pairs = np.array(rows, int).reshape(-1, 5).T
    return Judge(
        model=model,
        pairs=tuple(pair for pair in judged if pair),
        n_votes=len(rows),
        is_validated=len(rows) >= VOTES_MIN,
        kappa=agreement.cohen_kappa(people, judges, prompts, raters),
        kappa_people=agreement.kappa_among(people, pairs),
    )


def _pair(a: str, b: str, verdicts: Verdicts, key: Key) -> JudgedPair | None:
    alike = sum({x, y} == {a, b} for _, x, y in key.identical)
    values = [
        value
        for pair, value in verdicts.items()
        if {key.answers[name]["system"] for name in pair} == {a, b}
    ]
    if len(values) + alike < 2:
        return None
    choices = np.array([2 * value - 1 for value in values] + [0.0] * alike)
    alone = np.zeros(len(choices), int)
    return JudgedPair(
        a, b, values.count(1.0), values.count(0.5), values.count(0.0), alike,
        preference.mean_preference(choices, np.arange(len(choices)), alone),
    )  # fmt: skip
