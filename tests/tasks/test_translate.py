"""A task translated by a server on loopback: schema kept, golds consistent, oddities flagged."""

import csv
import json
import re
import threading

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.llamacpp.client import Client
from imatrix_lab.tasks import definition, items, load, locale, translate
from imatrix_lab.tasks import translate_prompts as texts
from tests.tasks.fakes import chat_server

WORDS = {
    "Ada lived in the red house.": "Ada bodde i det røde huset.",
    "Where did Ada live?": "Hvor bodde Ada?",
    "the red house": "det røde huset",
    "a house, red": "et hus, rødt",
    "How many legs has a spider?": "Hvor mange bein har en edderkopp?",
    "Which animal flies?": "Hvilket dyr flyr?",
    "the cow": "kua", "the lark": "lerka",
}  # fmt: skip
ROWS = [
    {"id": "0", "problem_type": "free-form", "context": "Ada lived in the red house.",
     "prompt": "Where did Ada live?", "target": ["the red house", "a house, red"],
     "benchmark_name": "x"},
    {"id": "1", "problem_type": "free-form", "context": None,
     "prompt": "How many legs has a spider?", "target": ["8"], "benchmark_name": "x"},
    {"id": "2", "problem_type": "multiple-choice", "context": None, "prompt": "Which animal flies?",
     "options": ["the cow", "the lark"], "target": [1], "benchmark_name": "x"},
]  # fmt: skip


def last(text):
    """What is to be translated: between the last two lines of dashes."""
    return re.findall(r"^----- \w{12} -----\n(.*?)\n----- \w{12} -----$", text, re.M | re.S)[-1]


def run(tmp_path, reply, rows=ROWS, **more):
    (tmp_path / "task.json").write_text(json.dumps(rows))
    with (
        chat_server(reply) as url,
        Client(
            url, more.get("model", "m"), timeout_s=30, retries=0, parallel=more.get("parallel", 1)
        ) as chat,
    ):
        chat.identity = more.get("identity", "the same server")
        return translate.translate(
            definition.get("mixeval"), "en", "nb", tmp_path / "task.json", tmp_path / "out",
            more.get("limit"), chat, Silent(),
        )  # fmt: skip


def test_a_task_in_its_own_schema(tmp_path):
    asked = []

    def reply(text):
        asked.append(text)
        return WORDS[last(text)]

    found = run(tmp_path, reply)
    done = json.loads(found.items.read_text())
    assert done[0]["target"] == ["det røde huset", "et hus, rødt"]
    assert done[1]["target"] == ["8"]  # numbers stay
    assert done[2]["options"] == ["kua", "lerka"]
    assert done[2]["target"] == [1]  # places stay
    assert len(asked) == len(WORDS)
    gold = next(text for text in asked if last(text) == "the red house")
    assert "Ada bodde i det røde huset." in gold  # translated beside its translated context
    manifest = json.loads(found.manifest.read_text())
    assert manifest["machine_translated"] is True
    assert manifest["model"] == "m"
    task = definition.get("mixeval")
    rows = load.rows(task, "nb", found.items).rows
    assert "m, from en" in load.rows(task, "nb", found.items).origin["machine_translated"]
    assert len(items.make(rows, task, "nb", locale.get("nb")).items) == 3


def test_the_review_has_what_looks_wrong_first(tmp_path):
    said = {**WORDS, "the red house": "rødhuset", "the cow": "lerka",
            "How many legs has a spider?": "Hvor mange bein har 2 edderkopper?"}  # fmt: skip
    found = run(tmp_path, lambda text: said[last(text)])
    with found.review.open(newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    flags = {line["source"]: line["flags"] for line in lines}
    assert "not in the context" in flags["the red house"]
    assert "two options have become the same" in flags["the lark"] + flags["the cow"]
    assert flags["How many legs has a spider?"] == "numbers differ"
    assert [bool(line["flags"]) for line in lines] == sorted(
        (bool(line["flags"]) for line in lines), reverse=True
    )
    assert found.n_flagged == sum(bool(line["flags"]) for line in lines)


def test_a_server_that_fails_is_asked_again(tmp_path):
    found = run(tmp_path, lambda text: 500 if last(text) == "the cow" else WORDS[last(text)])
    assert found.n_left_out == 1
    assert [row["id"] for row in json.loads(found.items.read_text())] == ["0", "1"]
    asked = []

    def reply(text):
        asked.append(last(text))
        return 500 if last(text) == "the cow" and model == "another" else WORDS[last(text)]

    model = "another"
    assert run(tmp_path, reply, model=model).n_left_out == 1
    assert len(asked) == len(WORDS)  # it translates everything itself
    asked.clear()
    model = "m"
    assert run(tmp_path, reply, limit=1, identity="another server").n_left_out == 0
    assert asked == list(WORDS)[:4]  # another model of the same name
    asked.clear()
    assert run(tmp_path, reply).n_left_out == 0
    assert asked == ["the cow"]
    assert run(tmp_path, reply).n_left_out == 0
    assert asked == ["the cow"]  # what is done is kept, whatever follows
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ImatrixLabError, match="nothing could be translated"):
        run(other, lambda text: b"nonsense")


def test_several_items_at_a_time_and_each_text_once(tmp_path):
    """Two requests are under way together, or the barrier breaks."""
    rows = [{**ROWS[1], "id": str(i), "context": f"Only {i}."} for i in range(4)]
    together, asked = threading.Barrier(2, timeout=20), []

    def reply(text):
        asked.append(said := last(text))
        if "Only" in said:
            together.wait()
        return f"på norsk: {said}"

    found = run(tmp_path, reply, rows, parallel=2)
    done = json.loads(found.items.read_text())
    assert [row["context"] for row in done] == [f"på norsk: Only {i}." for i in range(4)]
    assert asked.count(ROWS[1]["prompt"]) == 1


@pytest.mark.parametrize(
    ("source", "said", "flag"),
    [
        ("This sentence is long enough to be a sentence.",) * 2 + ("not translated",),
        ("It has 12 legs", "Den har 13 bein", "numbers differ"),
        ("This sentence is long enough to be a sentence.", "Kort.", "length"),
        ("The cup fell because _ was wet", "Koppen falt fordi den var våt", "gap lost"),
    ],
)
def test_flags(source, said, flag):
    assert flag in texts.flags_of("question", source, said)
