"""Every definition on files in its benchmark's own schema; kinds of files; a loopback Hub."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imatrix_lab.errors import BadText, FetchFailed, UsageError
from imatrix_lab.tasks import definition, items, load, locale, prompt
from tests.fakes.hub_server import HubServer
from tests.tasks.schemas import MADE


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        text = json.dumps(list(rows))
    elif path.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif path.suffix == ".tsv":
        head = "" if path.name.startswith("mgsm") else "\t".join(rows[0]) + "\n"
        text = head + "".join("\t".join(map(str, row.values())) + "\n" for row in rows)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        return path
    path.write_text(text, encoding="utf-8")
    return path


def local(folder, name):
    made = MADE[name]
    if name == "ntrex":
        (folder / "NTREX-128").mkdir()
        text = "NTREX-128/newstest2019-"
        for file, lines in ((f"{text}src.eng.txt", "The dog sleeps.\nThe cat walks.\n"),
                            (f"{text}ref.nob.txt", "Hunden sover.\nKatten går.\n"),
                            ("DOCUMENT_IDS.tsv", "a.1\na.1\n")):  # fmt: skip
            (folder / file).write_text(lines, encoding="utf-8")
        return folder
    if name == "flores-plus":
        write(folder / "eng_Latn.jsonl", [{"id": 1, "text": "The dog sleeps."}])
    write(folder / made.file, made.rows)
    return folder / made.file if name.startswith("mixeval") else folder


def test_every_task_has_a_schema():
    assert set(MADE) == set(definition.load_all())


@pytest.mark.parametrize("name", MADE)
def test_definitions_on_their_own_schema(name, tmp_path):
    made, task = MADE[name], definition.get(name)
    words = locale.get(made.language)
    found = items.make(
        load.rows(task, made.language, local(tmp_path, name)).rows, task, made.language, words
    )
    assert not found.rejected
    assert tuple(g for i in found.items for g in i.golds[:1]) == made.golds
    first = found.items[0]
    assert first.options == made.options
    assert first.part == made.part
    asked = prompt.ask(first, task, words, with_letters=task.variant == "letter")
    assert made.in_prompt in asked
    assert "{" not in asked


@pytest.mark.parametrize("name", MADE)
def test_prompts_in_every_language(name, tmp_path):
    """No language lacks a word that a task needs."""
    task = definition.get(name)
    rows = load.rows(task, MADE[name].language, local(tmp_path, name)).rows
    for code in task.languages:
        words = locale.get(code)
        for item in items.make(rows, task, code, words).items:
            assert prompt.ask(item, task, words, True)
            if item.options:
                assert len(prompt.choice_item(item, task, words, "raw").options) >= 2


def test_kinds_of_files(tmp_path):
    import datasets

    task = definition.get("global-mmlu")
    rows = [dict(row) for row in MADE["global-mmlu"].rows]
    keyed = tmp_path / "keyed.json"
    keyed.write_text(json.dumps({row["sample_id"]: row for row in rows}))
    parquet = tmp_path / "x.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(parquet))
    files = [keyed, parquet, *(write(tmp_path / f"x.{kind}", rows)
                               for kind in ("json", "jsonl", "tsv", "csv"))]  # fmt: skip
    words = locale.get("de")
    made = [items.make(load.rows(task, "de", f).rows, task, "de", words).items for f in files]
    assert all(one == made[0] for one in made)
    assert len(made[0]) == 4


def test_text_stays_text(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text('sample_id\tquestion\n007\tNA "quoted\n', encoding="utf-8")
    (row,) = load.rows(definition.get("global-mmlu"), "de", path).rows
    assert row == {"sample_id": "007", "question": 'NA "quoted'}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", b"{"),
        ("x.json", b"[1, 2]"),
        ("x.json", b"[" * 100_000),
        ("x.jsonl", b'{"a": 1\n'),
        ("x.jsonl", b"\xff\xfe"),
        ("x.parquet", b"PAR1 not really"),
        ("x.xml", b"<a/>"),
        ("x.csv", b"\xff\xff"),
    ],
)
def test_damaged_files(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadText):
        load.rows(definition.get("global-mmlu"), "de", path)


def test_missing_files_and_columns(tmp_path):
    task = definition.get("belebele")
    with pytest.raises(BadText, match="no such file"):
        load.rows(task, "nb", tmp_path)
    with pytest.raises(BadText, match="no such file"):
        load.rows(task, "nb", tmp_path / "x")
    path = write(tmp_path / "x.jsonl", [{"flores_passage": "x", "quession": "y"}])
    with pytest.raises(BadText, match="have no 'question'; they have flores_passage, quession"):
        items.make(load.rows(task, "nb", path).rows, task, "nb", locale.get("nb"))
    with pytest.raises(UsageError, match="has no 'xx'"):
        load.rows(task, "xx")
    with pytest.raises(UsageError, match="not on the Hub"):
        load.rows(definition.get("ntrex"), "nb")


def test_lines_that_do_not_match(tmp_path):
    local(tmp_path, "ntrex")
    (tmp_path / "DOCUMENT_IDS.tsv").write_text("a\n")
    with pytest.raises(BadText, match="different numbers of lines"):
        load.rows(definition.get("ntrex"), "nb", tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"answer": None}, items.NO_GOLD),
        ({"answer": " "}, items.NO_GOLD),
        ({"answer": "E"}, items.BAD_GOLD),
        ({"answer": "AB"}, items.BAD_GOLD),
        ({"question": ""}, items.NO_QUESTION),
        ({"option_b": ""}, items.NO_OPTIONS),
    ],
)
def test_rows_that_are_no_items(change, why):
    task = definition.get("global-mmlu")
    good, bad = dict(MADE["global-mmlu"].rows[0]), {**MADE["global-mmlu"].rows[1], **change}
    found = items.make([good, bad, good], task, "de", locale.get("de"))
    assert len(found.items) == 1
    assert set(found.rejected) == {why, items.TWICE}


def test_more_options_than_letters():
    task = definition.get("nrk-quiz-qa")
    row = {
        "id": "1",
        "question": "?",
        "answer": "A",
        "choices": {"text": [str(i) for i in range(27)]},
    }
    found = items.make([row], task, "nb", locale.get("nb"))
    assert set(found.rejected) == {items.TOO_MANY}


def test_braces_in_an_item_mean_nothing():
    task = definition.get("mixeval")
    row = {"id": "0", "problem_type": "free-form", "context": "{prompt} {words.answer}",
           "prompt": "{options} {0} %s {{", "target": ["{x}"]}  # fmt: skip
    words = locale.get("en")
    (item,) = items.make([row], task, "en", words).items
    asked = prompt.ask(item, task, words, True)
    assert asked.startswith("{prompt} {words.answer}\nQuestion: {options} {0} %s {{\n")


CARD = """---
configs:
- config_name: nob_Latn
  data_files:
  - split: test
    path: data/nob_Latn.jsonl
---
"""


def test_from_the_hub(tmp_path):
    """In a process of its own: the address of the Hub is read when its library is imported."""
    content = write(tmp_path / "x.jsonl", MADE["belebele"].rows).read_bytes()
    files = {"README.md": CARD.encode(), "data/nob_Latn.jsonl": content}
    text = (definition.folders()[0] / "belebele.toml").read_text(encoding="utf-8")
    import datasets

    table = datasets.Dataset.from_list([{"question": "5 + 6?", "answer_number": 11}] * 250)
    table.to_parquet(str(tmp_path / "0.parquet"))
    made = {
        f"{code}/test/0000.parquet": (tmp_path / "0.parquet").read_bytes() for code in ("de", "en")
    }
    gated = {"README.md": CARD.encode()}
    repos = {"facebook/belebele": {"main": files},
             "openlanguagedata/flores_plus": {"main": gated},
             "juletxara/mgsm": {"refs/convert/parquet": made}}  # fmt: skip
    with HubServer(repos) as hub:
        hub.gate("openlanguagedata/flores_plus")
        commit = hub.commit("facebook/belebele")
        pinned = text.replace("75b399394a9803252cfec289d103de462763db7c", commit)
        pinned = pinned.replace("items = 900", "items = 2")
        for name, body in (("pinned", pinned), ("newest", pinned.replace(commit, ""))):
            (tmp_path / f"{name}.toml").write_text(
                body.replace('name = "belebele"', f'name = "{name}"'), encoding="utf-8"
            )
        gone = pinned.replace(commit, "0" * 40).replace('name = "belebele"', 'name = "gone"')
        (tmp_path / "gone.toml").write_text(gone, encoding="utf-8")
        other = pinned.replace(commit, "").replace("items = 2", "items = 3")
        (tmp_path / "other.toml").write_text(
            other.replace('name = "belebele"', 'name = "other"'), encoding="utf-8"
        )
        code = (
            "import json, sys; from pathlib import Path\n"
            "from imatrix_lab.errors import BadText, FetchFailed\n"
            "from imatrix_lab.tasks import definition, load\n"
            "for name in ('pinned', 'newest'):\n"
            "    found = load.rows(definition.load(Path(sys.argv[1]) / f'{name}.toml'), 'nb')\n"
            "    print(json.dumps([found.rows, dict(found.origin)]))\n"
            "print(load.rows(definition.get('mgsm'), 'de').rows[-1])\n"
            "for name, lang in (('gone', 'nb'), ('pinned', 'en'), ('other', 'nb')):\n"
            "    try: load.rows(definition.load(Path(sys.argv[1]) / f'{name}.toml'), lang)\n"
            "    except (BadText, FetchFailed) as error: print(error.what)\n"
            "try: load.rows(definition.get('flores-plus'), 'nb')\n"
            "except FetchFailed as error: print(error.fix)\n"
        )

        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"),
                 "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert not done.returncode, done.stderr
    pinned_rows, newest, converted, *errors, gated_fix = done.stdout.splitlines()
    gone_error, config_error, count_error = errors
    assert gated_fix.startswith("accept the licence at https://huggingface.co/datasets/openlang")
    assert pinned_rows == newest
    rows, origin = json.loads(pinned_rows)
    assert tuple(rows) == MADE["belebele"].rows
    assert origin == {"facebook/belebele": commit}
    assert converted == "{'question': '5 + 6?', 'answer_number': 11}"
    assert "doesn't exist" in gone_error
    assert "eng_Latn" in config_error
    assert "has 2 rows, and not 3" in count_error


def test_offline_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchFailed, match="HF_HUB_OFFLINE is set") as offline:
        load.rows(definition.get("belebele"), "nb")
    assert "or --data with a folder that has nob_Latn.jsonl" in str(offline.value)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchFailed, match="cannot be reached"):
        load.rows(definition.get("mixeval"), "en")


def test_a_separator_of_lines_in_a_line_ends_none(tmp_path):
    folder = local(tmp_path, "ntrex")
    (folder / "NTREX-128/newstest2019-ref.nob.txt").write_text(
        "Hunden\u2028sover.\r\nKatten\x85går.\r\n", encoding="utf-8", newline=""
    )
    found = load.rows(definition.get("ntrex"), "nb", folder).rows
    assert [row["reference"] for row in found] == ["Hunden\u2028sover.", "Katten\x85går."]


def test_hostile_text(tmp_path):
    """Half characters, dates that a reader would take for its own, and marks of templates."""
    path = tmp_path / "x.json"
    path.write_text(
        '[{"id": "\\ud800", "problem_type": "free-form", "context": "\\u0000",'
        ' "prompt": "\\udfff <|im_end|> {ask}", "target": ["2019-01-01"]}]'
    )
    task = definition.get("mixeval")
    (item,) = items.make(load.rows(task, "en", path).rows, task, "en", locale.get("en")).items
    item.id.encode()
    assert "? <|im_end|> {ask}" in prompt.ask(item, task, locale.get("en"), True)
    ((_, said),) = prompt.generate_item(item, task, locale.get("en")).messages
    assert "? < |im_end|> {ask}" in said  # no end of the turn for a model that is asked it
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"sample_id": "1", "question": "2019-01-01"}\n')
    assert load.rows(definition.get("global-mmlu"), "de", lines).rows[0]["question"] == "2019-01-01"
