"""Votes: honest, lazy and biased people, and files that are none."""

import json
import random

import pytest

from imatrix_lab.errors import BadRecords
from imatrix_lab.publish.preference import pack, votes
from imatrix_lab.publish.preference.pack import Key

N = 120


def key_of(n_systems=2, identical=0, n=N):
    names = "abc"[:n_systems]
    prompts = {f"p{i}": f"question {i}" for i in range(n)}
    answers = {
        f"{system}{i:03d}": {"prompt": f"p{i}", "system": system, "text": f"{system} {i}"}
        for system in names
        for i in range(n)
    }
    alike = tuple((f"p{i}", "a", "b") for i in range(identical))
    systems = {name: {"name": f"model-{name}", "sha256": name} for name in names}
    return Key(pack.KEY, "0", "page", "r", "s", "en", systems, prompts, answers, alike)


def ballot(path, key, rater, person, systems=("a", "b"), n_repeats=0, n=N):
    """Votes of a person: a function of (drawn number, whether A is first) -> choice for A."""
    rng = random.Random(rater)
    cast = []
    for i in range(n):
        if any(f"p{i}" == prompt for prompt, *_ in key.identical):
            continue
        a, b = (f"{s}{i:03d}" for s in (systems if i % 2 else systems[::-1]))
        a_first = a.startswith(systems[0])
        choice = person(rng, a_first)
        cast.append({"prompt": f"p{i}", "first": a, "second": b, "repeat": False, "seconds": 9.5,
                      "choice": choice if a_first or choice is None else -choice})  # fmt: skip
    for vote in cast[:n_repeats]:
        again = person(rng, vote["first"].startswith(systems[1]))
        turned = again if vote["first"].startswith(systems[1]) else -again
        cast.append({**vote, "first": vote["second"], "second": vote["first"], "repeat": True,
                      "choice": turned})  # fmt: skip
    text = {"kind": votes.VOTES, "pack": key.pack, "rater": str(rater), "language": "en",
            "finished": True, "votes": cast}  # fmt: skip
    path.write_text(json.dumps(text))
    return path


def honest(lead):
    """A person who sees a difference of `lead` through noise."""

    def choose(rng, a_first):
        x = rng.gauss(lead, 1)
        return max(-2, min(2, round(x)))

    return choose


def result_of(tmp_path, people, key=None, margin=float("nan"), **more):
    key = key or key_of()
    paths = [
        ballot(tmp_path / f"{i}.json", key, i, person, **more) for i, person in enumerate(people)
    ]
    return votes.tally(votes.read_ballots(paths, key), key, margin)


def test_honest_people_find_the_better_model(tmp_path):
    result = result_of(tmp_path, [honest(0.5)] * 6, n_repeats=8)
    (pair,) = result.pairs
    assert pair.verdict == "better"
    assert pair.difference.of_people
    assert pair.n_wins_a + pair.n_ties + pair.n_wins_b == 6 * N
    assert "People prefer model-a to model-b" in votes.sentence(pair, result)
    assert {r.n_repeats for r in result.raters} == {8}
    worse = result_of(tmp_path, [honest(-0.5)] * 6).pairs[0]
    assert worse.verdict == "worse"


def test_equal_models_are_equivalent_or_undecided(tmp_path):
    result = result_of(tmp_path, [honest(0.0)] * 8, margin=0.15)
    assert result.pairs[0].verdict == "equivalent"
    few = result_of(tmp_path, [honest(0.0)], margin=0.02)
    assert few.pairs[0].verdict == "undecided"
    assert not few.pairs[0].difference.of_people
    assert few.pairs[0].n_to_decide > N
    assert "alone" in votes.sentence(few.pairs[0], few)


def test_lazy_people_change_no_verdict_and_are_seen(tmp_path):
    lazy = lambda rng, a_first: rng.choice([-2, -1, 0, 1, 2])  # noqa: E731
    result = result_of(tmp_path, [lazy] * 6, n_repeats=10)
    assert result.pairs[0].verdict == "undecided"
    assert abs(result.pairs[0].alpha) < 0.15
    assert sum(r.repeats_agree for r in result.raters) < 45


def test_who_always_takes_the_first_answer_is_seen_and_does_no_harm(tmp_path):
    first = lambda rng, a_first: 1 if a_first else -1  # noqa: E731
    result = result_of(tmp_path, [first] * 5)
    assert result.first_share == 1
    assert result.first_p < 0.001
    assert result.pairs[0].difference.interval.estimate == pytest.approx(0, abs=1e-12)
    assert result.pairs[0].verdict == "undecided"


def test_lazy_and_biased_people_hide_no_difference_that_the_others_see(tmp_path):
    lazy = lambda rng, a_first: rng.choice([-2, -1, 0, 1, 2])  # noqa: E731
    first = lambda rng, a_first: 1 if a_first else -1  # noqa: E731
    result = result_of(tmp_path, [honest(0.8)] * 6 + [lazy] * 2 + [first] * 2, n_repeats=10)
    (pair,) = result.pairs
    assert pair.verdict == "better"
    steady = [r.repeats_agree / r.n_repeats for r in result.raters]
    assert steady[-2:] == [0, 0]  # who takes the first each time contradicts what was turned
    assert [r.first for r in result.raters][-2:] == [1, 1]


@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_people_find_a_winner_between_equals_in_few_cases(tmp_path, bias):
    """Each has a taste, and leans towards the first answer."""
    key, hits = key_of(n=40), 0
    for trial in range(60):
        ballots = []
        for rater in range(5):
            rng = random.Random(f"{trial} {rater} {bias}")
            taste = rng.gauss(0, 0.4)

            def choose(rng, a_first, taste=taste):
                x = rng.gauss(taste + (bias if a_first else -bias), 1)
                return max(-2, min(2, round(x)))

            path = ballot(tmp_path / f"{rater}.json", key, f"{trial}{rater}", choose, n=40)
            ballots += votes.read_ballots([path], key)
        hits += votes.tally(ballots, key).pairs[0].verdict != "undecided"
    assert hits <= 7  # of 60: 3 are expected at 5 %, more than 7 in 1.5 % of cases


def test_equal_answers_are_ties_of_everyone(tmp_path):
    whole = result_of(tmp_path, [honest(5)] * 3).pairs[0]
    half = result_of(tmp_path, [honest(5)] * 3, key_of(identical=N // 2)).pairs[0]
    assert whole.difference.interval.estimate == 1
    assert half.difference.interval.estimate == pytest.approx(0.5)
    assert half.n_ties == 0
    assert half.n_identical == N // 2


def test_three_models_have_strengths(tmp_path):
    key = key_of(3)
    paths = [
        ballot(tmp_path / f"{x}{y}.json", key, x + y, honest(lead), (x, y))
        for x, y, lead in (("a", "b", 0.5), ("a", "c", 1.0), ("b", "c", 0.5))
    ]
    result = votes.tally(votes.read_ballots(paths, key), key)
    values = [result.strengths[name][0] for name in "abc"]
    assert values == sorted(values, reverse=True)
    assert len(result.pairs) == 3
    assert all(error > 0 for _, error in result.strengths.values())


def test_cannot_judge_is_counted_apart(tmp_path):
    unsure = lambda rng, a_first: None if rng.random() < 0.5 else 1  # noqa: E731
    pair = result_of(tmp_path, [unsure] * 3).pairs[0]
    assert pair.n_cannot + pair.n_wins_a == 3 * N
    with pytest.raises(BadRecords, match="no votes"):
        result_of(tmp_path, [lambda rng, a_first: None])


def test_the_longer_of_two_files_of_one_person_counts(tmp_path):
    key = key_of()
    path = ballot(tmp_path / "x.json", key, 1, honest(0))
    raw = json.loads(path.read_text())
    (tmp_path / "y.json").write_text(json.dumps({**raw, "votes": raw["votes"][:5]}))
    ballots = votes.read_ballots([path, tmp_path / "y.json"], key)
    assert [len(b.votes) for b in ballots] == [N]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "x"}, {"pack": "other"}, {"rater": ""}, {"votes": 3}, {"votes": [1]},
        {"votes": [{"prompt": "p0", "first": "a000", "second": "a000", "choice": 1}]},
        {"votes": [{"prompt": "p0", "first": "a000", "second": "b001", "choice": 1}]},
        {"votes": [{"prompt": "p0", "first": "a000", "second": "zzz", "choice": 1}]},
        {"votes": [{"prompt": "p0", "first": "a000", "second": "b000", "choice": 3}]},
        {"votes": [{"prompt": "p0", "first": "a000", "second": "b000", "choice": True}]},
        {"votes": [{"prompt": "p0", "first": "a000", "second": "b000", "choice": 1, "x": 1}]},
        {"votes": 2 * [{"prompt": "p0", "first": "a000", "second": "b000", "choice": 1}]},
        {"rater": "[red]me"}, {"rater": "\x1b]0;x"}, {"rater": 7},
    ],
)  # fmt: skip
def test_files_that_are_no_votes_of_this_page_are_refused(tmp_path, change):
    key = key_of()
    path = ballot(tmp_path / "x.json", key, 1, honest(0))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadRecords):
        votes.read_ballots([path], key)


def test_text_that_is_no_json(tmp_path):
    (tmp_path / "x.json").write_text("votes!")
    with pytest.raises(BadRecords, match="not JSON"):
        votes.read_ballots([tmp_path / "x.json"], key_of())
    with pytest.raises(BadRecords, match="cannot be read"):
        votes.read_ballots([tmp_path / "absent.json"], key_of())


def test_a_pair_counts_once(tmp_path):
    key = key_of()
    path = ballot(tmp_path / "x.json", key, 1, honest(0))
    raw = json.loads(path.read_text())
    turned = {"first": raw["votes"][0]["second"], "second": raw["votes"][0]["first"]}
    for again in (raw["votes"][0], {**raw["votes"][0], **turned}):
        path.write_text(json.dumps({**raw, "votes": [*raw["votes"], again]}))
        with pytest.raises(BadRecords, match="more than one vote"):
            votes.read_ballots([path], key)
