"""A task translated by a server on loopback: schema kept, golds consistent, oddities flagged."""

import csv
import json
import re
import threading

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.llamacpp.client import Client
from imatrix_lab.tasks import definition, load, translate, translate_prompts
from imatrix_lab.tasks.items import make_items
from imatrix_lab.tasks.locale import get_locale
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
        request = translate.TranslateRequest(
            definition.get("mixeval"), "en", "nb", tmp_path / "task.json", tmp_path / "out",
            more.get("limit"),
        )  # fmt: skip
        return translate.translate(request, chat, Silent())


def test_a_task_in_its_own_schema(tmp_path):
    prompts = []

    def reply(text):
        prompts.append(text)
        return WORDS[last(text)]

    files = run(tmp_path, reply)
    rows = json.loads(files.items.read_text())
    assert rows[0]["target"] == ["det røde huset", "et hus, rødt"]
    assert rows[1]["target"] == ["8"]  # numbers stay
    assert rows[2]["options"] == ["kua", "lerka"]
    assert rows[2]["target"] == [1]  # places stay
    assert len(prompts) == len(WORDS)
    gold = next(text for text in prompts if last(text) == "the red house")
    assert "Ada bodde i det røde huset." in gold  # translated beside its translated context
    manifest = json.loads(files.manifest.read_text())
    assert manifest["machine_translated"] is True
    assert manifest["model"] == "m"
    task = definition.get("mixeval")
    benchmark = load.rows(task, "nb", files.items)
    assert "m, from en" in benchmark.origin["machine_translated"]
    assert len(make_items(benchmark.rows, task, get_locale("nb"))[0]) == 3


def test_a_translator_that_thinks(tmp_path):
    files = run(tmp_path, lambda text: f"<think>\nHm, 1 2 3.\n</think>\n\n{WORDS[last(text)]}")
    rows = json.loads(files.items.read_text())
    assert (rows[0]["prompt"], rows[2]["options"]) == ("Hvor bodde Ada?", ["kua", "lerka"])
    assert files.n_flagged == 0


def test_the_review_has_what_looks_wrong_first(tmp_path):
    words = {**WORDS, "the red house": "rødhuset", "the cow": "lerka",
             "How many legs has a spider?": "Hvor mange bein har 2 edderkopper?"}  # fmt: skip
    files = run(tmp_path, lambda text: words[last(text)])
    with files.review.open(newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    flags = {line["source"]: line["flags"] for line in lines}
    assert "not in the context" in flags["the red house"]
    assert "two options have become the same" in flags["the lark"] + flags["the cow"]
    assert flags["How many legs has a spider?"] == "numbers differ"
    is_flagged = [bool(line["flags"]) for line in lines]
    assert is_flagged == sorted(is_flagged, reverse=True)
    assert files.n_flagged == sum(is_flagged)


def test_a_server_that_fails_is_asked_again(tmp_path):
    files = run(tmp_path, lambda text: 500 if last(text) == "the cow" else WORDS[last(text)])
    assert files.n_left_out == 1
    assert [row["id"] for row in json.loads(files.items.read_text())] == ["0", "1"]
    texts = []

    def reply(text):
        texts.append(last(text))
        return 500 if last(text) == "the cow" and model == "another" else WORDS[last(text)]

    model = "another"
    assert run(tmp_path, reply, model=model).n_left_out == 1
    assert len(texts) == len(WORDS)  # it translates everything itself
    texts.clear()
    model = "m"
    assert run(tmp_path, reply, limit=1, identity="another server").n_left_out == 0
    assert texts == list(WORDS)[:4]  # another model of the same name
    texts.clear()
    assert run(tmp_path, reply).n_left_out == 0
    assert texts == ["the cow"]
    assert run(tmp_path, reply).n_left_out == 0
    assert texts == ["the cow"]  # what is done is kept, whatever follows
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ImatrixLabError) as raised:
        run(other, lambda text: b"nonsense")
    assert "endpoint" in raised.value.fix


def test_several_items_at_a_time_and_each_text_once(tmp_path):
    """Two requests are under way together, or the barrier breaks."""
    rows = [{**ROWS[1], "id": str(i), "context": f"Only {i}."} for i in range(4)]
    together, texts = threading.Barrier(2, timeout=20), []

    def reply(text):
        texts.append(last(text))
        if "Only" in last(text):
            together.wait()
        return f"på norsk: {last(text)}"

    files = run(tmp_path, reply, rows, parallel=2)
    contexts = [row["context"] for row in json.loads(files.items.read_text())]
    assert contexts == [f"på norsk: Only {i}." for i in range(4)]
    assert texts.count(ROWS[1]["prompt"]) == 1


@pytest.mark.parametrize(
    ("field", "source", "text", "flags"),
    [
        ("question", "This sentence is long enough to be one, really.",
         "This sentence is long enough to be one, really.", ("not translated",)),
        ("question", "It has 12 legs", "Den har 13 bein", ("numbers differ",)),
        ("question", "This sentence is long enough to be one, really.", "Kort.", ("length",)),
        ("question", "The cup fell because _ was wet", "Koppen falt fordi den var våt",
         ("gap lost",)),
        ("question", "Does </think> end it?", "?", ("speaks of marks of thoughts",)),
        ("gold", "one line", "to\nlinjer", ("more than an answer",)),
        ("gold", "two\nlines", "to\nlinjer", ()),
        ("question", "one line", "to\nlinjer", ()),
    ],
)  # fmt: skip
def test_flags(field, source, text, flags):
    assert translate_prompts.flags_of(field, source, text) == flags
