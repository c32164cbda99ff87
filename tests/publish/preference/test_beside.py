"""Beside the votes: a judge of the same pairs, and records of the same models."""

import json
import random
import re

import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.llamacpp.client import Client
from imatrix_lab.publish.preference import judges, measures, pack, votes
from imatrix_lab.publish.preference.pack import Key
from tests.compare import made_up
from tests.compare.made_up import Text
from tests.publish.preference.test_votes import ballot, honest
from tests.tasks.fakes import chat_server

N = 30


def key_of(language="nb", reference="reference"):
    """Answers of which a's are good and b's are bad, but for every third prompt."""
    texts = {}
    for i in range(N):
        texts[f"a{i:03d}"] = {"prompt": f"p{i}", "system": "a", "text": f"good {i}"}
        text = f"{'fair' if i % 3 else 'great'} {i}"
        texts[f"b{i:03d}"] = {"prompt": f"p{i}", "system": "b", "text": text}
    prompts = {f"p{i}": f"Spørsmål {i}" for i in range(N)}
    systems = {
        "a": {"name": "base", "sha256": reference},
        "b": {"name": "quant", "sha256": made_up.quant("nb", "Q3_K_S")["sha256"]},
    }
    return Key(pack.KEY, "0", "page", "r", "s", language, systems, prompts, texts)


def sees(text):
    """A judge that knows its words."""
    worth = {"great": 3, "good": 2, "fair": 1}
    first, second = re.findall(r"(great|good|fair) \d+", text)
    return f"Choice: {'A' if worth[first] > worth[second] else 'B'}"


def people(tmp_path, key, n, n_votes=N):
    """Votes of people who mostly see what the judge sees."""
    paths = []
    for rater in range(n):
        rng = random.Random(rater)
        path = ballot(tmp_path / f"{rater}.json", key, rater, honest(0), n=N)
        raw = json.loads(path.read_text())
        for vote in raw["votes"]:
            lead = 1 if int(vote["prompt"][1:]) % 3 else -1
            a_first = vote["first"].startswith("a")
            vote["choice"] = (lead if rng.random() < 0.8 else -lead) * (1 if a_first else -1)
        path.write_text(json.dumps({**raw, "votes": raw["votes"][:n_votes]}))
        paths.append(path)
    return votes.read_ballots(paths, key)


def judge(key, path, reply, progress=None):
    with chat_server(reply) as url, Client(url, "a judge", timeout_s=10) as chat:
        chat.identity = "the same model"
        return judges.ask(key, path, chat, progress or Silent())


def test_a_judge_that_agrees_with_people(tmp_path):
    key, path = key_of(), tmp_path / "vote.key.json"
    assert judge(key, path, sees).name == "vote.judge.a-judge.jsonl"
    verdicts = judges.read(key, path)
    (one,) = votes.tally(people(tmp_path, key, 4), key, verdicts=verdicts).judges
    assert [(p.n_wins_a, p.n_ties, p.n_wins_b) for p in one.pairs] == [(20, 0, 10)]
    assert one.is_validated
    assert one.n_votes == 4 * N
    assert 0 < one.kappa.low < one.kappa.estimate < one.kappa.high
    assert one.kappa.estimate > one.kappa_people > 0  # it makes none of their mistakes


def test_who_always_takes_the_first_is_a_judge_of_ties(tmp_path):
    key, path = key_of(), tmp_path / "vote.key.json"
    judge(key, path, lambda text: "Choice: A")
    result = votes.tally(people(tmp_path, key, 4), key, verdicts=judges.read(key, path))
    (one,) = result.judges
    assert [p.n_ties for p in one.pairs] == [N]
    assert one.kappa.estimate == 0
    assert "no more than chance" in votes.judge_sentence(one, result)


class Told(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_a_judge_that_rambles(tmp_path):
    """A verdict in one order alone is none; the rest is asked again, and too few are no result."""
    key, path, told = key_of(), tmp_path / "vote.key.json", Told()
    judge(key, path, lambda text: sees(text) if "good 7" in text else "Both are good.", told)
    assert [line for line in told.lines if f"{N - 1} of {N}" in line]
    result = votes.tally(people(tmp_path, key, 2), key, verdicts=judges.read(key, path))
    (one,) = result.judges
    assert one.pairs == () and not one.is_validated and one.n_votes == 2
    assert "too few verdicts" in votes.judge_sentence(one, result)
    first = re.compile("good.*(fair|great)", re.DOTALL)
    judge(key, path, lambda text: sees(text) if first.search(text) else "Choice: A or B", told)
    assert len(judges.read(key, path)) == 1
    judge(key, path, sees, told)
    assert len(next(iter(judges.read(key, path).values()))) == N


@pytest.mark.parametrize(("n_votes", "is_validated"), [(12, False), (13, True)])
def test_a_judge_without_fifty_votes_is_not_validated(tmp_path, n_votes, is_validated):
    key, path = key_of(), tmp_path / "vote.key.json"
    judge(key, path, sees)
    ballots = people(tmp_path, key, 4, n_votes)
    result = votes.tally(ballots, key, verdicts=judges.read(key, path))
    (one,) = result.judges
    assert one.is_validated == is_validated
    text = votes.judge_sentence(one, result)
    assert ("Not validated in nb" in text) != is_validated
    assert ("kappa" in text) == is_validated


@pytest.mark.parametrize("language", ["tlh", "fr"])
def test_a_judge_without_instructions_is_told_first(language):
    with pytest.raises(UsageError):
        judges.locale_of(key_of(language))


def test_judgements_of_another_page_are_none(tmp_path):
    other = key_of()
    judge(other, tmp_path / "vote.key.json", sees)
    renamed = {f"x{name}": answer for name, answer in other.answers.items()}
    key = Key(**{**vars(other), "answers": renamed})
    assert judges.read(key, tmp_path / "vote.key.json") == {}  # another page's


def test_records_stand_beside_the_votes(tmp_path):
    key = key_of()
    text = Text("vote.a")
    text.write(tmp_path / "scores" / "q.parquet", "nb", "Q3_K_S")
    text.write(tmp_path / "scores" / "other.parquet", "en", "Q3_K_S")
    (kld,) = measures.compare([tmp_path / "scores"], key)
    assert (kld.a, kld.b, kld.text, kld.unit) == ("base", "quant", "vote.a", "nats a token")
    assert kld.value_a == 0
    assert kld.difference == -kld.value_b
    assert kld.low < -kld.value_b < kld.high < 0
    quants = Key(**{**vars(key), "systems": {
        "a": {"name": "nb", "sha256": made_up.quant("nb", "Q4_K_M")["sha256"]},
        "b": {"name": "en", "sha256": made_up.quant("en", "Q4_K_M")["sha256"]},
    }})  # fmt: skip
    rng = np.random.default_rng(1)
    (tmp_path / "items").mkdir()
    for calibration, share in (("nb", 0.7), ("en", 0.6)):
        rows = [("quiz", "nb", str(i), str(i), float(rng.random() < share)) for i in range(300)]
        made_up.items(tmp_path / "items" / f"{calibration}.parquet", rows, calibration)
    (score,) = measures.compare([tmp_path / "items"], quants)
    assert score.unit == "points"
    assert score.difference == pytest.approx(score.value_a - score.value_b)
    assert score.low < score.difference < score.high
    with pytest.raises(BadRecords, match="no records of two"):
        measures.compare([tmp_path / "scores"], quants)
