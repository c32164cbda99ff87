"""What the votes on a page say: which answers people prefer, how sure that is, who voted how."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.core import config
from imatrix_lab.core.files import from_json
from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.publish.preference import judges
from imatrix_lab.publish.preference.judges import Judge, Opinion, Verdicts
from imatrix_lab.publish.preference.measures import Measure
from imatrix_lab.publish.preference.pack import Key
from imatrix_lab.stats import agreement, equivalence, preference
from imatrix_lab.stats.preference import MeanPreference

VOTES = "imatrix_lab votes"
CHOICES = (2, 1, 0, -1, -2)
"""From "the first is much better" to "the second is"."""
POINTS = 100.0


@dataclass(frozen=True)
class Vote:
    """A choice, from 2 (the first answer is much better) to -2; None: could not judge."""

    prompt: str
    first: str
    second: str
    repeat: bool = False
    seconds: float = math.nan
    choice: int | None = None


@dataclass(frozen=True)
class Ballot:
    """One person's votes."""

    path: Path
    rater: str
    votes: tuple[Vote, ...]


@dataclass(frozen=True)
class Pair:
    """Votes on two systems. The difference is A's share of wins less B's, from -1 to 1.

    Attributes
    ----------
    n_identical : prompts that both answered alike; they count as ties of everyone.
    strength : the mean of the five-point choices, from -2 (B) to 2 (A).
    p_equivalence : of two one-sided tests against the margin; NaN without one.
    """

    a: str
    b: str
    n_wins_a: int
    n_ties: int
    n_wins_b: int
    n_cannot: int
    n_identical: int
    n_prompts: int
    difference: MeanPreference
    strength: float
    alpha: float
    p_equivalence: float
    verdict: str
    n_to_decide: int


@dataclass(frozen=True)
class Rater:
    """How one person voted.

    ``first`` is the share of decided votes for the answer shown first; ``repeats_agree`` of
    `n_repeats` pairs shown twice got the same winner.
    """

    rater: str
    n_votes: int
    n_cannot: int
    first: float
    n_repeats: int
    repeats_agree: int
    seconds_median: float


@dataclass(frozen=True)
class Tally:
    """Everything that the votes of a page say; and beside it, what judges and records say."""

    pack: str
    language: str
    systems: Mapping[str, Mapping[str, Any]]
    margin: float
    pairs: tuple[Pair, ...]
    raters: tuple[Rater, ...]
    first_share: float
    first_p: float
    strengths: Mapping[str, tuple[float, float]]
    judges: tuple[Judge, ...] = ()
    measures: tuple[Measure, ...] = ()


def read_ballots(paths: Sequence[Path], key: Key) -> list[Ballot]:
    """Return each person's votes; of files of one person, the one with most votes.

    Raises BadRecords: a file is none of this page's votes, or has been changed.
    """
    by_rater: dict[str, Ballot] = {}
    for path in paths:
        ballot = _read(path, key)
        old = by_rater.get(ballot.rater)
        if old is None or len(ballot.votes) > len(old.votes):
            by_rater[ballot.rater] = ballot
    return list(by_rater.values())


def _read(path: Path, key: Key) -> Ballot:
    try:
        raw = from_json(path.read_bytes())
    except OSError as error:
        raise BadRecords(f"cannot be read: {error.strerror}", where=path) from error
    except ValueError as error:
        what = f"not JSON: {error}"
        raise BadRecords(what, where=path, fix="let the page save the file again") from error
    if not isinstance(raw, dict) or raw.get("kind") != VOTES:
        raise BadRecords("these are no votes", where=path, fix="give the files that the page saved")
    if raw.get("pack") != key.pack:
        what = f"these are votes on another page ({raw.get('pack')}, not {key.pack})"
        raise BadRecords(what, where=path, fix="--key FILE, the one made with that page")
    votes = raw.get("votes")
    rater = raw.get("rater")
    if not isinstance(votes, list) or not isinstance(rater, str):
        raise BadRecords("votes or rater are missing", where=path)
    if not re.fullmatch("[0-9a-f]{1,32}", rater):
        raise BadRecords(f"{rater[:40]!r} is no rater that the page draws", where=path)
    ballot = Ballot(path, rater, tuple(_vote(vote, key, path) for vote in votes))
    counts = Counter((vote.prompt, vote.repeat) for vote in ballot.votes)
    if twice := [prompt for (prompt, _), n in counts.items() if n > 1]:
        what = f"more than one vote on a prompt ({twice[0]}): the page lets nobody vote twice"
        raise BadRecords(what, where=path)
    return ballot


def _vote(raw: Any, key: Key, path: Path) -> Vote:
    known = {"prompt", "first", "second", "repeat", "seconds", "choice"}
    if not isinstance(raw, dict) or not known - {"seconds", "repeat"} <= raw.keys() <= known:
        raise BadRecords("a vote has other fields than the page writes", where=path)
    choice = raw.pop("choice")
    try:
        vote = config.build(Vote, raw, path)
    except UsageError as error:
        raise BadRecords(error.what, where=path) from error
    answers = [key.answers.get(name, {}).get("prompt") for name in (vote.first, vote.second)]
    if answers != [vote.prompt] * 2 or vote.first == vote.second:
        raise BadRecords(f"a vote on answers that this page does not have: {raw}", where=path)
    if choice is not None and (type(choice) is not int or choice not in CHOICES):
        raise BadRecords(f"a choice of {choice!r}, not from -2 to 2", where=path)
    return Vote(**{**vars(vote), "choice": choice})


def tally(
    ballots: Sequence[Ballot], key: Key, margin: float = math.nan,
    verdicts: Mapping[str, Verdicts] | None = None, measures: tuple[Measure, ...] = (),
) -> Tally:  # fmt: skip
    """Return what votes say; `margin` is the smallest share of wins that matters, from 0 to 1.

    Raises BadRecords: no votes.
    """
    opinions = [o for rater, ballot in enumerate(ballots) for o in _opinions(rater, ballot, key)]
    if all(o.choice is None for o in opinions):
        raise BadRecords("no votes: nobody judged anything")
    systems = sorted(key.systems)
    pairs = (_pair(a, b, opinions, key, margin) for a, b in combinations(systems, 2))
    share, p = _first_share(ballots)
    return Tally(
        pack=key.pack,
        language=key.language,
        systems=key.systems,
        margin=margin,
        pairs=tuple(pair for pair in pairs if pair is not None),
        raters=tuple(map(_rater, ballots)),
        first_share=share,
        first_p=p,
        strengths=_strengths(systems, opinions) if len(systems) > 2 else {},
        judges=tuple(judges.compare(m, v, opinions, key) for m, v in (verdicts or {}).items()),
        measures=measures,
    )


def _opinions(rater: int, ballot: Ballot, key: Key) -> Iterator[Opinion]:
    """Yield the votes of a person by system; what was shown again is not counted again."""
    numbers = {name: i for i, name in enumerate(key.prompts)}
    for vote in ballot.votes:
        if not vote.repeat:
            first, second = (key.answers[name]["system"] for name in (vote.first, vote.second))
            a, b = sorted((first, second))
            choice = vote.choice if vote.choice is None or first == a else -vote.choice
            both = frozenset((vote.first, vote.second))
            yield Opinion(numbers[vote.prompt], rater, a, b, both, choice)


def _pair(a: str, b: str, opinions: Iterable[Opinion], key: Key, margin: float) -> Pair | None:
    of_pair = [o for o in opinions if (o.a, o.b) == (a, b)]
    rows = [(o.prompt, o.rater, o.choice) for o in of_pair if o.choice is not None]
    if not rows:
        return None
    voted = np.array(rows)
    units, values = voted[:, 0], voted[:, 2].astype(float)
    numbers = {name: i for i, name in enumerate(key.prompts)}
    alike = [numbers[prompt] for prompt, x, y in key.identical if {x, y} == {a, b}]
    voters = np.unique(voted[:, 1])
    ties = np.array([(prompt, rater, 0) for prompt in alike for rater in voters]).reshape(-1, 3)
    all_votes = np.concatenate([voted, ties.astype(int)])
    difference = preference.mean_preference(
        np.sign(all_votes[:, 2]), all_votes[:, 0], all_votes[:, 1]
    )
    interval, p_equal, n_to_decide = difference.interval, math.nan, 0
    if margin > 0:
        p_equal = equivalence.tost(interval, margin)
        needed = equivalence.clusters_to_decide(interval, margin)
        n_to_decide = math.ceil(len(np.unique(all_votes[:, 0])) * needed / (interval.df + 1))
    verdict = equivalence.verdict(
        interval.estimate, difference.p_value, None if math.isnan(p_equal) else p_equal, False
    )
    signs = Counter(np.sign(values).astype(int).tolist())
    return Pair(
        a=a, b=b, n_wins_a=signs[1], n_ties=signs[0], n_wins_b=signs[-1],
        n_cannot=len(of_pair) - len(rows), n_identical=len(alike),
        n_prompts=len(np.unique(all_votes[:, 0])), difference=difference,
        strength=float(values.mean()), alpha=agreement.krippendorff_alpha(units, values),
        p_equivalence=p_equal, verdict=verdict, n_to_decide=n_to_decide,
    )  # fmt: skip


def _first_share(ballots: Iterable[Ballot]) -> tuple[float, float]:
    """Return the share of decided votes for the answer shown first, and p that it is a half."""
    rows = [
        (vote.prompt, rater, np.sign(vote.choice))
        for rater, ballot in enumerate(ballots)
        for vote in ballot.votes
        if vote.choice
    ]
    prompts = {name: i for i, name in enumerate(dict.fromkeys(row[0] for row in rows))}
    if len(prompts) < 2:
        return math.nan, math.nan
    choices = np.array([row[2] for row in rows], float)
    codes = np.array([prompts[row[0]] for row in rows])
    mean = preference.mean_preference(choices, codes, np.array([row[1] for row in rows]))
    return (1 + mean.interval.estimate) / 2, mean.p_value


def _rater(ballot: Ballot) -> Rater:
    decided = [vote.choice for vote in ballot.votes if vote.choice]
    first = {
        frozenset((v.first, v.second)): v for v in ballot.votes if not v.repeat
    }  # fmt: skip
    agree = n = 0
    for vote in ballot.votes:
        before = first.get(frozenset((vote.first, vote.second)))
        if vote.repeat and before and vote.choice is not None and before.choice is not None:
            turned = -1 if before.first == vote.second else 1
            n += 1
            agree += bool(np.sign(vote.choice) == turned * np.sign(before.choice))
    seconds = [vote.seconds for vote in ballot.votes if math.isfinite(vote.seconds)]
    return Rater(
        rater=ballot.rater,
        n_votes=sum(v.choice is not None and not v.repeat for v in ballot.votes),
        n_cannot=sum(v.choice is None and not v.repeat for v in ballot.votes),
        first=float(np.mean(np.array(decided) > 0)) if decided else math.nan,
        n_repeats=n,
        repeats_agree=agree,
        seconds_median=float(np.median(seconds)) if seconds else math.nan,
    )


def _strengths(
    systems: Sequence[str], opinions: Sequence[Opinion]
) -> dict[str, tuple[float, float]]:
    """Return each system's log strength and standard error; nothing where they are not finite."""
    voted = np.array(
        [
            (systems.index(o.a), systems.index(o.b), o.choice, o.prompt)
            for o in opinions
            if o.choice is not None
        ]
    )
    try:
        fit = preference.strengths(voted[:, :2], voted[:, 2], voted[:, 3], len(systems))
    except ValueError:
        return {}
    errors = zip(fit.log_strengths, fit.std_errors, strict=True)
    return {name: (float(s), float(e)) for name, (s, e) in zip(systems, errors, strict=True)}


def sentence(pair: Pair, tally: Tally) -> str:
    """Return what a comparison says, in words."""
    names = {name: str(system["name"]) for name, system in tally.systems.items()}
    a, b = names[pair.a], names[pair.b]
    mean, n = pair.difference, pair.n_wins_a + pair.n_ties + pair.n_wins_b
    people = "1 person" if mean.n_raters == 1 else f"{mean.n_raters} people"
    shares = (f"{pair.n_wins_a / n:.0%}", f"{pair.n_wins_b / n:.0%}")
    head = {
        "better": f"People prefer {a} to {b}",
        "worse": f"People prefer {b} to {a}",
        "equivalent": f"To people {a} and {b} are equally good",
        "undecided": f"Votes do not tell {a} and {b} apart",
    }[pair.verdict]
    low, high = (POINTS * x for x in (mean.interval.low, mean.interval.high))
    text = f"{head}: {a} wins {shares[0]} and {b} {shares[1]} of {n:,} votes by {people}"
    text += f" on {pair.n_prompts} prompts (difference {POINTS * mean.interval.estimate:+.1f}"
    text += f" points, 95 % CI {low:+.1f} to {high:+.1f})."
    if pair.n_identical:
        text += f" {pair.n_identical} prompts were answered alike and count as ties."
    if not mean.of_people:
        text += f" It holds for {people} alone: with fewer than {preference.RATERS_MIN}, nothing"
        text += " is known of how people differ."
    if pair.verdict == "undecided" and pair.n_to_decide:
        text += f" About {pair.n_to_decide:,} prompts would decide it."
    return text


def judge_sentence(judge: Judge, tally: Tally) -> str:
    """Return what a judge says, and whether people who speak the language have borne it out."""
    names = {name: str(system["name"]) for name, system in tally.systems.items()}
    parts = []
    for pair in judge.pairs:
        interval = pair.difference.interval
        low, estimate, high = (POINTS * x for x in (interval.low, interval.estimate, interval.high))
        parts.append(
            f"{names[pair.a]} wins {pair.n_wins_a:,} and {names[pair.b]} {pair.n_wins_b:,}, ties"
            f" {pair.n_ties:,} (difference {estimate:+.1f} points, 95 % CI {low:+.1f} to"
            f" {high:+.1f})"
        )
    text = f"Judge {judge.model}: {'; '.join(parts) or 'too few verdicts to compare'}."
    if not judge.is_validated:
        return (
            f"{text} Not validated in {tally.language}: {judge.n_votes} votes of people on what it"
            f" judged, and {judges.VOTES_MIN} are needed."
        )
    kappa = judge.kappa
    if math.isnan(kappa.low):
        return f"{text} Its agreement with people cannot be told: all gave the same verdict."
    two = "" if math.isnan(judge.kappa_people) else f"; of two people {judge.kappa_people:.2f}"
    text += f" Its agreement with people in {tally.language}: Cohen's kappa {kappa.estimate:.2f}"
    text += f" (95 % CI {kappa.low:.2f} to {kappa.high:.2f}; {judge.n_votes:,} votes{two})."
    return text + (" It may be no more than chance." if kappa.low <= 0 else "")
