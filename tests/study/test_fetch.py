"""What a study takes from the network is fetched before: then it runs where there is none."""

import json
import random

import pytest

from tests.corpus.made_up import LANGUAGE, prose
from tests.fakes.hub_server import HubServer
from tests.study.scored import EXAM
from tests.study.whole import ITEMS, SMALL

NOWHERE = "http://127.0.0.1:9"
SOURCES = """
[web]
kind = "hub"
repo = "org/web"
config = "default"
split = "test"
text = "text"
id = "id"
licence = "CC0-1.0"
licence_class = "permissive"
origin = "Hugging Face: org/web"
note = "made up"
"""
CARD = b"""---
configs:
- config_name: default
  data_files:
  - split: test
    path: rows.jsonl
---
"""


def lines(rows):
    return "\n".join(map(json.dumps, rows)).encode()


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tiny):
    rng = random.Random(4)
    texts = [{"id": str(i), "text": prose(rng)[:300]} for i in range(160)]
    repos = {"org/tiny": {"main": {"tiny-f16.gguf": tiny}},
             "org/web": {"main": {"README.md": CARD, "rows.jsonl": lines(texts)}}}  # fmt: skip
    with HubServer(repos) as server:
        yield server


def test_what_is_fetched_is_all_that_a_study_needs(bench, hub):
    task = '\n[[tasks]]\nname = "exam.toml"\nlanguages = ["en"]\n'
    text = SMALL.replace("qaa", "qah").replace("tiny-f16.gguf", "hf:org/tiny") + task
    ours = bench("fetched", text=text)
    data = ours.folder / "data"
    (data / "corpora").mkdir(parents=True)
    language = LANGUAGE.format(code="qah", name="Language qah")
    language = language.replace("source = []", '[[source]]\nuse = "web"')
    (data / "corpora" / "qah.toml").write_text(language)
    (data / "corpora" / "sources.toml").write_text(SOURCES)
    (ours.folder / "tiny-f16.gguf").unlink()
    exam = EXAM.replace('files = ["exam.json"]', 'hub = "org/exam"\nconfig = "default"')
    (ours.folder / "exam.toml").write_text(exam)
    ours.env |= {"IMATRIX_LAB_DATA": str(data), "HF_HOME": str(ours.folder / "hf")}

    def fetch(endpoint, status):
        ours.env["HF_ENDPOINT"] = endpoint
        return ours.run("fetch", ours.recipe, "--out", ours.out, status=status)

    _, err = fetch(NOWHERE, 1)
    assert "org/tiny" in err
    _, err = fetch(hub.endpoint, 1)
    assert "missing: items of exam" in err and "org/exam" in err and "fetching org/tiny" in err
    hub.push("org/exam", "main", {"README.md": CARD, "rows.jsonl": lines(ITEMS)})
    before = len(hub.requests)
    out, err = fetch(hub.endpoint, 0)
    asked = " ".join(request.path for request in hub.requests[before:])
    assert str(ours.folder / "cache") in out and "missing" not in err
    assert "org/exam" in asked and "tiny-f16.gguf" not in asked and "rows.jsonl" in asked
    assert "org/web" not in asked
    ours.env["HF_ENDPOINT"] = NOWHERE
    ours.study()
    study = ours.load()
    assert not study.missing and {s.task for s in study.scores} == {"", "exam"}
    assert len(study.quants) == 2
