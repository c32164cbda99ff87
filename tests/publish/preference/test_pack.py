"""A page for votes: what it shows, what it hides, and its key."""

import dataclasses
import json

import pytest

from imatrix_lab.core import config
from imatrix_lab.core.files import sealed_json
from imatrix_lab.core.outputs import Rules
from imatrix_lab.core.paths import data_dir
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.publish.preference import pack, prompts
from imatrix_lab.publish.preference.pack import Key, PackRequest
from imatrix_lab.publish.preference.prompts import Prompts
from imatrix_lab.report.text import visible
from imatrix_lab.types import ComputeOptions, Sampling

CPU = ComputeOptions("cpu", threads=1, n_ctx=256)


@pytest.fixture(scope="module")
def request_of(reference, quants):
    def make(out, *models, n=6):
        texts = tuple(f"hva er {i} pluss {i}?" for i in range(n))
        own = Prompts("nb", {"arithmetic": texts})
        paths = tuple(str(quants.get(name, reference)) for name in models)
        return PackRequest(own, paths, out, CPU, max_tokens=8, parallel=4)

    return make


def test_real_answers_and_a_key_that_knows_whose(score_store, tmp_path, request_of):
    session = Session(score_store(tmp_path / "store"), Silent())
    request = request_of(tmp_path / "vote.html", "F16", "Q2_K")
    key = pack.make(request, session)
    page = request.out.read_text()
    assert {system["type"] for system in key.systems.values()} == {"F16", "Q2_K"}
    assert len(key.answers) == 12
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(shown["pairs"]) + len(key.identical) == 6
    for prompt, first, second in shown["pairs"]:
        assert {key.answers[name]["system"] for name in (first, second)} == {"a", "b"}
        assert {key.answers[name]["prompt"] for name in (first, second)} == {prompt}
        assert shown["answers"][first] == visible(key.answers[first]["text"])
    for secret in ("Q2_K", "tiny", key.salt, key.systems["a"]["sha256"]):
        assert secret not in page
    assert pack.read_key(pack.key_path(request.out)) == key
    bytes_before = request.out.read_bytes(), pack.key_path(request.out).read_bytes()
    assert pack.make(request, session) == key  # nothing is asked again, nothing changes
    assert bytes_before == (request.out.read_bytes(), pack.key_path(request.out).read_bytes())
    assert not list(tmp_path.rglob(".unfinished/*"))
    rows = [json.loads(x)["text"] for x in pack.text_path(request.out).read_text().splitlines()]
    answers = [a["text"] for a in key.answers.values() if a["system"] == "a"]
    assert len(rows) == 6
    assert all(any(row.endswith(text) for text in answers) for row in rows)


def test_sampled_answers_are_signed_and_come_again(score_store, tmp_path, request_of):
    session = Session(score_store(tmp_path / "store"), Silent())
    greedy = request_of(tmp_path / "greedy.html", "F16", "Q2_K")
    first, again, other = (
        dataclasses.replace(greedy, out=tmp_path / f"{name}.html", sampling=Sampling(0.8, seed))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    keys = [pack.make(r, session) for r in (greedy, first, again, other)]
    texts = [sorted(map(str, key.answers.values())) for key in keys]
    assert texts[1] == texts[2] and len({*map(tuple, texts)}) == 3
    assert keys[1].request == keys[2].request and len({key.request for key in keys}) == 3
    said = [key.systems["a"]["protocol"].get("sampling") for key in keys[:2]]
    assert said == [None, {"temperature": 0.8, "seed": 1, "min_p": 0.05}]
    with pytest.raises(UsageError, match="not replaced"):
        pack.make(dataclasses.replace(other, out=greedy.out), session)


def test_another_request_does_not_lose_a_key(score_store, tmp_path, request_of):
    session = Session(score_store(tmp_path / "store"), Silent())
    request = request_of(tmp_path / "vote.html", "F16", "Q2_K")
    pack.make(request, session)
    other = request_of(tmp_path / "vote.html", "F16", "Q2_K", n=3)
    with pytest.raises(UsageError, match="not replaced"):
        pack.make(other, session)
    (tmp_path / "own.html").write_text("my page")
    with pytest.raises(UsageError, match="not replaced"):
        pack.make(request_of(tmp_path / "own.html", "F16", "Q2_K"), session)


def test_a_model_is_not_compared_with_itself(score_store, tmp_path, request_of):
    session = Session(score_store(tmp_path / "store"), Silent())
    with pytest.raises(UsageError, match="same file"):
        pack.make(request_of(tmp_path / "vote.html", "F16", "F16"), session)
    assert not (tmp_path / "vote.html").exists()


def test_nothing_on_the_page_tells_whose_an_answer_is(tmp_path):
    n = 400
    own = Prompts("nb", {"x": tuple(f"hva er {i}?" for i in range(n))})
    systems = [{"name": name, "sha256": name} for name in ("base", "quant")]
    answers = [{name: f"{s['name']} {name}" for name in own.by_id()} for s in systems]
    keys = [
        pack.filled(pack.begun(own, systems, tmp_path / "v.html", Rules()), own.by_id(), answers)
        for _ in range(2)
    ]
    assert not keys[0].answers.keys() & keys[1].answers.keys()  # another salt, other hashes
    data = pack._page_data(keys[0])
    is_a = [keys[0].answers[name]["system"] == "a" for name in data["answers"]]
    assert abs(sum(is_a[:n]) - n / 2) < 5 * (n / 8) ** 0.5
    sides = [keys[0].answers[first]["system"] == "a" for _, first, _ in data["pairs"]]
    assert abs(sum(sides) - n / 2) < 5 * (n / 4) ** 0.5
    assert abs(sum(sides[: n // 2]) - n / 4) < 5 * (n / 8) ** 0.5


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "imatrix_lab votes"}', "\x00"])
def test_other_files_are_no_keys(tmp_path, content):
    path = tmp_path / "key.json"
    path.write_text(content)
    with pytest.raises(BadRecords):
        pack.read_key(path)
    with pytest.raises(BadRecords, match="cannot be read"):
        pack.read_key(tmp_path / "absent.json")


@pytest.mark.parametrize("path", sorted(data_dir("prompts").glob("*.toml")), ids=lambda p: p.stem)
def test_the_projects_prompts(path):
    own = prompts.read(path.stem)
    assert (own.language, own.licence) == (path.stem, "CC0-1.0")
    assert len(own.by_id()) == 150
    assert prompts.texts_of(path.stem).language == path.stem


def test_where_nobody_has_written_the_pages_words_it_speaks_english():
    assert prompts.texts_of("fi").language == "en"


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("language = 'nb'", "missing key 'prompts'"),
        ("language = 'nb'\n[prompts]\na = ['x']", "at least two"),
        ("language = 'nb'\n[prompts]\na = ['x', ' ']", "none of them empty"),
        ("language = 'nb'\n[prompts]\na = ['x', 'x']", "twice"),
        ("language = 'nb'\n[prompts]\na = 'x'", "not a list"),
    ],
)
def test_bad_prompts_are_told(tmp_path, toml, problem):
    path = tmp_path / "p.toml"
    path.write_text(toml)
    with pytest.raises(UsageError, match=problem):
        prompts.read(path)
    with pytest.raises(UsageError, match="no prompts for tlh"):
        prompts.read("tlh")


KEY = Key(pack.KEY, "0", "", "r", "s", "nb", {x: {"name": x, "sha256": x} for x in "ab"}, {}, {})


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key["answers"][next(iter(key["answers"]))].update(system="b"),
        lambda key: key["answers"][next(iter(key["answers"]))].update(text="x"),
        lambda key: key["answers"][next(iter(key["answers"]))].pop("system"),
        lambda key: key["answers"].popitem(),
        lambda key: key["prompts"].popitem(),
        lambda key: key.update(identical=[["p1"]]),
        lambda key: key.update(identical=[["p1", "a", "z"]]),
        lambda key: key.update(salt="t"),
        lambda key: key["systems"].pop("a"),
        lambda key: key["systems"]["a"].pop("name"),
    ],
)
def test_a_key_that_was_changed_is_refused(tmp_path, change):
    answers = [{"p1": "yes", "p2": "ja"}, {"p1": "yes", "p2": "nei"}]
    key = pack.filled(KEY, {"p1": "?", "p2": "??"}, answers)
    raw = json.loads(json.dumps(config.plain(key)))
    path = tmp_path / "key.json"
    path.write_text(json.dumps(raw))
    assert pack.read_key(path) == key
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(BadRecords):
        pack.read_key(path)


def test_another_name_for_a_system_is_refused_too(tmp_path):
    answers = [{"p1": "yes", "p2": "ja"}, {"p1": "yes", "p2": "nei"}]
    key, path = pack.filled(KEY, {"p1": "?", "p2": "??"}, answers), tmp_path / "key.json"
    text = sealed_json(config.plain(key))
    path.write_text(text)
    assert pack.read_key(path) == key
    path.write_text(text.replace('"name": "a"', '"name": "A"'))
    with pytest.raises(BadRecords, match="changed"):
        pack.read_key(path)


@pytest.mark.parametrize("language", ["x" * 9000, "../prompts", "\0", ""])
def test_a_language_of_prompts_is_no_path(language):
    assert prompts.texts_of(language).language == "en"
