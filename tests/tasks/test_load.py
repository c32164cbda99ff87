"""Every definition on files in its benchmark's own schema; kinds of files; a loopback Hub."""

import csv
import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from imatrix_lab.errors import BadText, FetchFailed, UsageError
from imatrix_lab.tasks import definition, items, load, prompt, readers
from imatrix_lab.tasks.items import make_items
from imatrix_lab.tasks.locale import get_locale
from tests.fakes.hub_server import HubServer
from tests.tasks.schemas import SCHEMAS


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
    schema = SCHEMAS[name]
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
    write(folder / schema.file, schema.rows)
    return folder / schema.file if name.startswith("mixeval") else folder


def test_every_task_has_a_schema():
    assert set(SCHEMAS) == set(definition.load_all())


@pytest.mark.parametrize("name", SCHEMAS)
def test_definitions_on_their_own_schema(name, tmp_path):
    schema, task = SCHEMAS[name], definition.get(name)
    locale = get_locale(schema.language)
    rows = load.rows(task, schema.language, local(tmp_path, name)).rows
    questions, rejected = make_items(rows, task, locale)
    assert not rejected
    assert tuple(gold for item in questions for gold in item.golds[:1]) == schema.golds
    assert (questions[0].options, questions[0].part) == (schema.options, schema.part)
    text = prompt.ask(questions[0], task, locale, with_letters=task.prompt.variant == "letter")
    assert schema.in_prompt in text
    assert "{" not in text


@pytest.mark.parametrize("name", SCHEMAS)
def test_prompts_in_every_language(name, tmp_path):
    """No language lacks a word that a task needs."""
    task = definition.get(name)
    rows = load.rows(task, SCHEMAS[name].language, local(tmp_path, name)).rows
    for code in task.languages:
        locale = get_locale(code)
        for item in make_items(rows, task, locale)[0]:
            assert prompt.ask(item, task, locale, True)
            if item.options:
                assert len(prompt.choice_item(item, task, locale, "raw").options) >= 2


def test_kinds_of_files(tmp_path):
    import datasets

    task = definition.get("global-mmlu")
    rows = [dict(row) for row in SCHEMAS["global-mmlu"].rows]
    keyed = tmp_path / "keyed.json"
    keyed.write_text(json.dumps({row["sample_id"]: row for row in rows}))
    parquet = tmp_path / "x.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(parquet))
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(write(tmp_path / "y.jsonl", rows).read_bytes()))
    by_content = write(tmp_path / "z.json", rows).rename(tmp_path / "z.jsonl")
    utf16 = tmp_path / "utf16.csv"
    utf16.write_text(write(tmp_path / "y.csv", rows).read_text("utf-8"), "utf-16")
    files = [keyed, parquet, packed, by_content, utf16, *(write(tmp_path / f"x.{kind}", rows)
                               for kind in ("json", "jsonl", "tsv", "csv"))]  # fmt: skip
    locale = get_locale("de")
    first, *others = (make_items(load.rows(task, "de", f).rows, task, locale)[0] for f in files)
    assert all(other == first for other in others)
    assert len(first) == 4


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
    with pytest.raises(BadText) as raised:
        load.rows(definition.get("global-mmlu"), "de", path)
    assert raised.value.where == str(path)


def test_missing_files(tmp_path):
    task = definition.get("belebele")
    for data, missing in ((tmp_path, tmp_path / "nob_Latn.jsonl"), (tmp_path / "x",) * 2):
        with pytest.raises(BadText) as raised:
            load.rows(task, "nb", data)
        assert raised.value.where == str(missing)


def test_missing_columns(tmp_path):
    task = definition.get("belebele")
    path = write(tmp_path / "x.jsonl", [{"flores_passage": "x", "quession": "y"}])
    with pytest.raises(BadText) as raised:
        make_items(load.rows(task, "nb", path).rows, task, get_locale("nb"))
    assert raised.value.where == str(task.path)
    assert all(name in raised.value.what for name in ("'question'", "flores_passage", "quession"))


def test_a_language_or_a_place_that_a_task_lacks():
    with pytest.raises(UsageError) as raised:
        load.rows(definition.get("belebele"), "xx")
    assert raised.value.fix == f"--langs {','.join(definition.get('belebele').languages)}"
    with pytest.raises(UsageError) as raised:
        load.rows(definition.get("ntrex"), "nb")
    assert raised.value.fix == f"{definition.get('ntrex').source.get}; then --data FOLDER"


def test_one_file_is_not_in_two_languages(tmp_path):
    """A sentence is not asked to be translated from itself."""
    task = definition.get("flores-plus")
    file = local(tmp_path, "flores-plus") / SCHEMAS["flores-plus"].file
    code = SCHEMAS["flores-plus"].language
    with pytest.raises(UsageError) as raised:
        load.rows(task, code, file)
    assert f"{file.name}, eng_Latn.jsonl" in raised.value.fix
    both = write(tmp_path / "both.jsonl", load.rows(task, code, tmp_path).rows)
    assert load.rows(task, code, both).rows == load.rows(task, code, tmp_path).rows


def test_a_file_that_a_definition_names_is_in_its_language(tmp_path):
    task = definition.get("belebele")
    own = replace(task, source=replace(task.source, hub=""), languages={"nb": "nob"})
    for name, may_be_ml in (("nob.jsonl", False), ("translated.jsonl", True)):
        file = write(tmp_path / name, [{"question": "?"}])
        assert load.has(own, "ml", file) is may_be_ml and load.has(own, "nb", file)


def test_lines_that_do_not_match(tmp_path):
    local(tmp_path, "ntrex")
    (tmp_path / "DOCUMENT_IDS.tsv").write_text("a\n")
    with pytest.raises(BadText) as raised:
        load.rows(definition.get("ntrex"), "nb", tmp_path)
    assert "newstest2019-ref.nob.txt 2, DOCUMENT_IDS.tsv 1" in raised.value.what


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
    good, bad = dict(SCHEMAS["global-mmlu"].rows[0]), {**SCHEMAS["global-mmlu"].rows[1], **change}
    kept, rejected = make_items([good, bad, good], task, get_locale("de"))
    assert len(kept) == 1
    assert set(rejected) == {why, items.TWICE}


def test_more_options_than_letters():
    task = definition.get("nrk-quiz-qa")
    row = {
        "id": "1",
        "question": "?",
        "answer": "A",
        "choices": {"text": [str(i) for i in range(27)]},
    }
    _, rejected = make_items([row], task, get_locale("nb"))
    assert set(rejected) == {items.TOO_MANY}


def test_braces_in_an_item_mean_nothing():
    task = definition.get("mixeval")
    row = {"id": "0", "problem_type": "free-form", "context": "{prompt} {words.answer}",
           "prompt": "{options} {0} %s {{", "target": ["{x}"]}  # fmt: skip
    locale = get_locale("en")
    (item,) = make_items([row], task, locale)[0]
    text = prompt.ask(item, task, locale, True)
    assert text.startswith("{prompt} {words.answer}\nQuestion: {options} {0} %s {{\n")


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
    content = write(tmp_path / "x.jsonl", SCHEMAS["belebele"].rows).read_bytes()
    files = {"README.md": CARD.encode(), "data/nob_Latn.jsonl": content}
    text = definition.paths()["belebele"].read_text(encoding="utf-8")
    import datasets

    table = datasets.Dataset.from_list([{"question": "5 + 6?", "answer_number": 11}] * 250)
    table.to_parquet(str(tmp_path / "0.parquet"))
    parquet = (tmp_path / "0.parquet").read_bytes()
    repos = {"facebook/belebele": {"main": files},
             "openlanguagedata/flores_plus": {"main": {"README.md": CARD.encode()}},
             "juletxara/mgsm": {"refs/convert/parquet": {
                 f"{code}/test/0000.parquet": parquet for code in ("de", "en")}}}  # fmt: skip
    with HubServer(repos) as hub:
        hub.gate("openlanguagedata/flores_plus")
        commit = hub.commit("facebook/belebele")
        pinned = text.replace("75b399394a9803252cfec289d103de462763db7c", commit)
        pinned = pinned.replace("items = 900", "items = 2")
        newest = pinned.replace(commit, "")
        for name, body in (("pinned", pinned), ("newest", newest),
                           ("gone", pinned.replace(commit, "0" * 40)),
                           ("other", newest.replace("items = 2", "items = 3"))):  # fmt: skip
            own = body.replace('name = "belebele"', f'name = "{name}"')
            (tmp_path / f"{name}.toml").write_text(own, encoding="utf-8")
        code = """
import json, sys
from pathlib import Path
from imatrix_lab.errors import BadText, FetchFailed
from imatrix_lab.tasks import definition, load

def own(name):
    return definition.load(Path(sys.argv[1]) / f"{name}.toml")

for name in ("pinned", "newest"):
    benchmark = load.rows(own(name), "nb")
    print(json.dumps([benchmark.rows, dict(benchmark.origin)]))
print(load.rows(definition.get("mgsm"), "de").rows[-1])
for task, lang in ((own("gone"), "nb"), (own("pinned"), "en"), (own("other"), "nb"),
                   (definition.get("flores-plus"), "nb")):
    try:
        load.rows(task, lang)
    except (BadText, FetchFailed) as error:
        print(json.dumps([type(error).__name__, error.what, error.where, error.fix]))
"""
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"),
                 "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert not done.returncode, done.stderr
    pinned_rows, newest_rows, converted, *errors = done.stdout.splitlines()
    assert pinned_rows == newest_rows
    rows, origin = json.loads(pinned_rows)
    assert tuple(rows) == SCHEMAS["belebele"].rows
    assert origin == {"facebook/belebele": commit}
    assert converted == "{'question': '5 + 6?', 'answer_number': 11}"
    gone, no_config, other_version, gated = map(json.loads, errors)
    assert [e[0] for e in (gone, no_config, other_version, gated)] == [
        "FetchFailed", "FetchFailed", "BadText", "FetchFailed"]  # fmt: skip
    assert gone[2] == no_config[2] == "https://huggingface.co/datasets/facebook/belebele"
    assert "eng_Latn" in no_config[1]
    assert other_version[2] == str(tmp_path / "other.toml")
    assert gated[3].startswith("accept the licence at https://huggingface.co/datasets/openlang")


def test_offline_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchFailed) as raised:
        load.rows(definition.get("belebele"), "nb")
    assert "HF_HUB_OFFLINE" in raised.value.what
    assert "--data with a folder that has nob_Latn.jsonl" in raised.value.fix
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchFailed) as raised:
        load.rows(definition.get("mixeval"), "en")
    assert "free-form.json, multiple-choice.json" in raised.value.fix


def test_a_separator_of_lines_in_a_line_ends_none(tmp_path):
    folder = local(tmp_path, "ntrex")
    (folder / "NTREX-128/newstest2019-ref.nob.txt").write_text(
        "Hunden\u2028sover.\r\nKatten\x85går.\r\n", encoding="utf-8", newline=""
    )
    rows = load.rows(definition.get("ntrex"), "nb", folder).rows
    assert [row["reference"] for row in rows] == ["Hunden\u2028sover.", "Katten\x85går."]


def test_hostile_text(tmp_path):
    """Half characters, dates that a reader would take for its own, and marks of templates."""
    path = tmp_path / "x.json"
    path.write_text(
        '[{"id": "\\ud800", "problem_type": "free-form", "context": "\\u0000",'
        ' "prompt": "\\udfff <|im_end|> {ask}", "target": ["2019-01-01"]}]'
    )
    task = definition.get("mixeval")
    locale = get_locale("en")
    (item,) = make_items(load.rows(task, "en", path).rows, task, locale)[0]
    item.id.encode()
    assert "? <|im_end|> {ask}" in prompt.ask(item, task, locale, True)
    ((_, text),) = prompt.generate_item(item, task, locale).messages
    assert "? < |im_end|> {ask}" in text  # no end of the turn for a model that is asked it
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"sample_id": "1", "question": "2019-01-01"}\n')
    assert load.rows(definition.get("global-mmlu"), "de", lines).rows[0]["question"] == "2019-01-01"


def test_rows_that_are_nested_too_deeply(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"a": ' + "[" * 600 + "]" * 600 + "}]")
    with pytest.raises(BadText):
        readers.table(path)
