"""A page for votes as a step of a study, and people's votes in its results."""

import json
import random

import pytest

from imatrix_lab.errors import UsageError
from imatrix_lab.publish.preference import pack, votes
from imatrix_lab.study import validate
from imatrix_lab.study.recipe import load
from tests.study.whole import SMALL

PROMPTS = "language = 'nb'\n[prompts]\nkind = [{}]\n"
PREFERENCE = """
[preference]
prompts = "own.toml"
models = ["original", "qaa"]
max_tokens = 8
margin = 20
"""


def cast(key, rater):
    """Votes of someone who mostly finds the original better."""
    rng, rows = random.Random(rater), []
    for a, b in pack.pairs(key):
        row = {"prompt": key.answers[a]["prompt"], "repeat": False, "seconds": 5.0}
        rows.append({**row, "first": a, "second": b, "choice": 1 if rng.random() < 0.95 else -1})
    return {"kind": votes.VOTES, "pack": key.pack, "rater": f"{rater}", "votes": rows}


def test_a_study_makes_a_page_and_shows_the_votes(bench):
    ours = bench("votes", text=SMALL + PREFERENCE)
    asked = ", ".join(f"'hva er {i}?'" for i in range(12))
    (ours.folder / "own.toml").write_text(PROMPTS.format(asked))
    ours.study()
    folder = ours.out / "preference"
    key = pack.read_key(folder / "tiny.key.json")
    assert [s["name"] for s in key.systems.values()] == ["tiny", "tiny-qaa.1-Q2_K"]
    page = (folder / "tiny.html").read_bytes()
    assert any("No votes yet" in note for note in ours.load().notes)
    assert ours.load().preferences == ()
    assert not ours.quants()
    (folder / "votes").mkdir()
    for rater in range(4):
        (folder / "votes" / f"{rater}.json").write_text(json.dumps(cast(key, rater)))
    ours.run("resume", ours.out)
    assert (folder / "tiny.html").read_bytes() == page
    (row,) = ours.load().preferences
    assert (row.a, row.n_people, row.n_prompts, row.verdict) == ("tiny", 4, 12, "better")
    assert row.low > 0
    for report in ("report.html", "report.md"):
        assert "People prefer tiny to" in (ours.out / report).read_text()
    (folder / "votes" / "5.json").write_text("no votes")
    ours.run("resume", ours.out, status=1)
    (missing,) = ours.load().missing
    assert missing.why.startswith("5.json: not JSON")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"models": '["qaa"]'}, "two or more"),
        ({"models": '["qaa", "qab"]'}, "no 'qab' Q2_K"),
        ({"type": '"Q3_K_M"'}, "no 'Q3_K_M'"),
        ({"prompts": '"tlh"'}, "no prompts for tlh"),
        ({"margin": "-1"}, "less than 0"),
    ],
)
def test_what_cannot_be_voted_on_is_told_first(tmp_path, table, problem, monkeypatch):
    table = {"prompts": '"nb"', "models": '["original", "none"]', **table}
    lines = "\n".join(f"{key} = {value}" for key, value in table.items())
    path = tmp_path / "recipe.toml"
    text = SMALL.format(keep="all").replace("qaa", "nb").replace("short=short.jsonl", "nb")
    text = text.replace('"tiny-f16.gguf"', '"demo"')
    path.write_text(f"{text}\n[preference]\n{lines.replace('qaa', 'nb')}\n")
    with pytest.raises(UsageError, match=problem):
        validate.check(load(path))
