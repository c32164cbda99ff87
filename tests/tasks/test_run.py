"""From a request to records that `compare` reads: merging, resuming, failing, flipping."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from imatrix_lab.compare.compare import compare_runs
from imatrix_lab.compare.design import ComparisonPlan
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadModel, BadRecords, BadText, FetchFailed, ToolFailed, UsageError
from imatrix_lab.records import parquet
from imatrix_lab.tasks import definition, load, records, run, summary
from imatrix_lab.tasks.journal import Journal
from imatrix_lab.tasks.locale import get_locale
from imatrix_lab.types import ComputeOptions, TaskRequest
from tests.tasks.fakes import Answerer

N = 40


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def say(self, message):
        self.notes.append(message)


@pytest.fixture
def exam(tmp_path):
    """Multiple choice: B is right; items 0 and 1 are the same, two of a cluster each."""
    rows = [
        {"id": str(i), "text": f"About {i // 2}.", "ask": f"Question {max(i, 1)}?",
         "choices": ["one", "two", "three"], "right": 1}
        for i in range(N)
    ]  # fmt: skip
    rows[0]["text"] = rows[1]["text"]
    rows.append({**rows[5], "id": "no-gold", "right": None})
    (tmp_path / "exam.json").write_text(json.dumps(rows))
    task = tmp_path / "exam.toml"
    task.write_text("""
name = "exam"
title = "An exam"
scorer = "choice"
licence = "CC0-1.0"
citation = "us"
[source]
files = ["exam.json"]
[fields]
id = "{id}"
context = "{text}"
question = "{ask}"
options = "{choices}"
gold = "{right}"
cluster = "{text}"
[prompt]
ask = "{context}\\n{words.question}: {question}\\n{lettered}\\n{words.answer}:"
""")
    return task


@pytest.fixture
def quiz(tmp_path):
    """MixEval's schema, in Bokmål: free form and multiple choice."""
    free = {str(i): {"problem_type": "free-form", "context": None, "prompt": f"Hva er {i} + 1?",
                     "target": [str(i + 1)], "benchmark_name": "x"} for i in range(20)}  # fmt: skip
    path = tmp_path / "quiz.json"
    path.write_text(json.dumps(free))
    return path


def request(task, tmp_path, **changes):
    given = {
        "tasks": (str(task),), "languages": ("nb",), "quants": ("x",), "out": tmp_path / "out",
        "compute": ComputeOptions("cpu"), "data": tmp_path / "exam.json",
    }  # fmt: skip
    return TaskRequest(**{**given, **changes})


def right_unless(*wrong):
    return lambda item: [-2.0, -3.0 if item.id in wrong else -1.0, -4.0]


def test_records_that_compare_reads(exam, tmp_path):
    progress = Notes()
    a = Answerer("A", right_unless())
    b = Answerer("B", right_unless(*map(str, range(20))))
    paths = run.run(request(exam, tmp_path), [a, b], progress)
    assert [p.name for p in paths] == ["exam.nb.A.parquet", "exam.nb.B.parquet"]
    numbers = re.findall(r"\d+", progress.notes[0])
    assert numbers == ["39", "20", "1", "1"]  # items, clusters, repeats, without a gold answer
    (comparison,) = compare_runs(paths, ComparisonPlan(n_resamples=200), (), Silent()).comparisons
    assert (comparison.n, comparison.n_clusters) == (N - 1, 20)
    scores = {s.quant: s for s in summary.scores(paths)}
    assert scores["A"].score.estimate == 1.0
    assert scores["B"].score.estimate == pytest.approx(20 / 39)
    assert 0.8 < scores["A"].score.low < scores["A"].score.high == 1.0
    assert (scores["A"].n_given, scores["A"].n_unique) == (41, 39)
    flips = summary.flips(*paths)
    assert (len(flips.items), flips.n_items, flips.n_gained, flips.n_lost) == (19, 39, 0, 19)
    flip = flips.items[0]
    assert (flip.a, flip.b, flip.type) == ("A", "B", "Q4_K_M")
    assert (flip.output_a, flip.output_b, flip.gold) == ("B", "A", "B")


def test_the_second_time_nothing_is_asked(exam, tmp_path):
    first = Answerer("A", right_unless())
    (path,) = run.run(request(exam, tmp_path), [first], Silent())
    before = path.read_bytes()
    again = Answerer("A", right_unless())
    assert run.run(request(exam, tmp_path), [again], Silent()) == [path]
    assert again.ids == []
    assert path.read_bytes() == before
    other = Answerer("A", right_unless(), commit="another")
    (beside,) = run.run(request(exam, tmp_path), [other], Silent())
    assert beside != path and path.read_bytes() == before
    with pytest.raises(BadRecords) as raised:
        summary.flips(path, beside)
    assert "toolchain.commit" in raised.value.what


def test_a_killed_run_goes_on(exam, tmp_path):
    def dies(item):
        if item.id == "30":
            raise KeyboardInterrupt
        return [-2.0, -1.0, -4.0]

    first = Answerer("A", dies)
    with pytest.raises(KeyboardInterrupt):
        run.run(request(exam, tmp_path), [first], Silent())
    assert not list((tmp_path / "out").glob("*.parquet"))
    (journal,) = (tmp_path / "out" / ".unfinished").iterdir()
    with journal.open("a") as file:
        file.write('{"id": "31", "score": 1.0, "predi')  # cut off by a kill
    second = Answerer("A", right_unless())
    (path,) = run.run(request(exam, tmp_path), [second], Silent())
    assert sorted(first.ids + second.ids, key=int) == sorted(
        [str(i) for i in range(N) if i != 1] + ["30"], key=int
    )
    assert len(parquet.read(path)) == N - 1
    assert not journal.exists()


def test_parts_are_put_together_whatever_became_of_them(exam, tmp_path):
    """Of two parts one is killed, then it is three; what an item failed with is asked again."""
    (path,) = run.run(request(exam, tmp_path), [Answerer("A", right_unless("9", "10"))], Silent())
    whole = path.read_bytes()
    path.unlink()
    unfinished, asked = tmp_path / "out" / ".unfinished", []

    def answer(choose, part=None):
        answerer = Answerer("A", choose)
        try:
            return run.run(request(exam, tmp_path), [answerer], Silent(), part=part)
        finally:
            asked.append(answerer.ids)

    def dies(item):
        if item.id == "22":
            raise KeyboardInterrupt
        return right_unless("9", "10")(item)

    fine = right_unless("9", "10")
    (file,) = answer(lambda item: "time-out" if item.id == "5" else fine(item), (0, 2))
    assert file.parent == unfinished
    with pytest.raises(KeyboardInterrupt):
        answer(dies, (1, 2))
    assert answer(fine, (0, 3)) and not path.exists() and len([*unfinished.iterdir()]) == 3
    assert answer(fine) == [path] and path.read_bytes() == whole
    assert not [*unfinished.iterdir()]
    twice = [i for i in {*map(str, range(N))} - {"1"} if sum(ids.count(i) for ids in asked) > 1]
    assert sorted(twice) == ["22", "5"] and all(asked)
    assert {*asked[0]}.isdisjoint(asked[1])
    assert answer(fine, (1, 3)) == [] and not asked[-1]  # nothing is left to do


def test_failed_items_are_not_wrong(exam, tmp_path):
    too_long = "prompt longer than the context: 900 tokens of 512"

    def some(item):
        return {"4": too_long, "6": "time-out"}.get(item.id, [-2.0, -1.0, -4.0])

    progress = Notes()
    (path,) = run.run(request(exam, tmp_path), [Answerer("A", some)], progress)
    (score,) = summary.scores([path])
    assert score.failed == {"prompt longer than the context": 1, "time-out": 1}
    assert (score.n_items, score.score.estimate) == (N - 3, 1.0)
    assert any(too_long in note for note in progress.notes)
    again = Answerer("A", right_unless())
    run.run(request(exam, tmp_path), [again], Silent())
    assert sorted(again.ids) == ["4", "6"]  # asked once more, and only those
    assert summary.scores([path])[0].failed == {}


def test_all_failed(exam, tmp_path):
    with pytest.raises(ToolFailed, match=r"exam\.nb\.A: all of 39 items failed: time-out"):
        run.run(request(exam, tmp_path), [Answerer("A", lambda _: "time-out")], Silent())
    few = request(exam, tmp_path, limit=3, endpoint="http://127.0.0.1:9999")
    with pytest.raises(FetchFailed, match="all of 3 items failed") as raised:
        run.run(few, [Answerer("A", lambda _: "time-out")], Silent())
    assert raised.value.fix
    assert not list((tmp_path / "out").glob("*.parquet"))
    again = Answerer("A", right_unless())
    (path,) = run.run(request(exam, tmp_path), [again], Silent())
    assert len(again.ids) == N - 1 and summary.scores([path])[0].failed == {}


def test_ties_share_the_point_and_are_counted(exam, tmp_path):
    (path,) = run.run(
        request(exam, tmp_path), [Answerer("A", lambda _: [-1.0, -1.0, -4.0])], Silent()
    )
    (score,) = summary.scores([path])
    assert (score.n_ties, score.score.estimate) == (39, 0.5)
    assert set(records.words(parquet.read(path), "prediction")) == {"A=B"}


@pytest.mark.parametrize(("variant", "wins"), [("raw", "A"), ("token", "B"), ("byte", "C")])
def test_variants(variant, wins, exam, tmp_path):
    rows = [
        {"id": "1", "text": "", "ask": "Q?", "choices": ["hi", "b c d e", "x" * 60], "right": 0}
    ]
    (tmp_path / "exam.json").write_text(json.dumps(rows))
    seen = []

    def choose(item):
        seen.append(item)
        return [-1.0, -2.0, -3.0]

    (path,) = run.run(request(exam, tmp_path, variant=variant), [Answerer("A", choose)], Silent())
    assert records.words(parquet.read(path), "prediction") == [wins]
    assert seen[0].context == "Spørsmål: Q?\nSvar:"
    assert seen[0].options[0] == " hi"


def test_examples_are_not_scored(exam, tmp_path):
    seen = []

    def choose(item):
        seen.append(item)
        return [-2.0, -1.0, -4.0]

    run.run(request(exam, tmp_path, shots=2), [Answerer("A", choose)], Silent())
    (prefix,) = {item.prefix for item in seen}
    assert prefix.count("Svar: B\n\n") == 2
    assert not {"0", "1", "2", "3"} & {item.id for item in seen}
    assert len(seen) == 36
    seen.clear()
    run.run(request(exam, tmp_path, shots=2, limit=30), [Answerer("A", choose)], Silent())
    assert len(seen) == 30  # the examples are beside the limit


def test_a_limit_draws_the_same_items(exam, tmp_path):
    a, b = (Answerer(name, right_unless()) for name in "AB")
    run.run(request(exam, tmp_path, limit=7), [a, b], Silent())
    assert len(a.ids) == 7
    assert a.ids == b.ids


def test_free_form_with_text(quiz, tmp_path):
    def say(item):
        number = int(item.messages[0][1].split()[3])
        if number == 3:
            return RuntimeError("status 500")
        return "Det vet jeg ikke …" if number > 9 else f"Svaret er {number + 1},0."

    paths = run.run(
        request("mixeval", tmp_path, data=quiz, keep_text=True),
        [Answerer("A", None, say)],
        Silent(),
    )
    table = parquet.read(paths[0])
    assert set(records.words(table, "task")) == {"mixeval/free-form"}
    assert "Svar så kort du kan." in records.words(table, "prompt")[0]
    assert "Svaret er 1,0." in records.words(table, "output")
    (score,) = summary.scores(paths)
    assert score.score.estimate == pytest.approx(9 / 19)
    assert score.failed == {"status 500": 1}
    assert score.n_cut == 10


def test_translations_have_corpus_scores(tmp_path):
    (tmp_path / "NTREX-128").mkdir()
    for name, lines in (("src.eng", "The dog sleeps here.\nA cat walks in the rain.\n"),
                        ("ref.nob", "Hunden sover her nå.\nEn katt går i regnet.\n")):  # fmt: skip
        (tmp_path / f"NTREX-128/newstest2019-{name}.txt").write_text(lines)
    (tmp_path / "DOCUMENT_IDS.tsv").write_text("a\nb\n")
    answers = Answerer("A", None, lambda item: "Hunden sover her nå." if "dog" in str(item) else "")
    paths = run.run(request("ntrex", tmp_path, data=tmp_path), [answers], Silent())
    (score,) = summary.scores(paths)
    assert score.score.estimate == pytest.approx(0.5)
    assert score.n_unparsed == 1
    assert score.quality and 0 < score.quality.bleu < 100
    assert "nrefs:1" in score.quality.chrf_signature


def test_items_are_in_no_language_that_their_task_lacks(exam, tmp_path):
    exam.write_text(exam.read_text() + '[languages]\nnb = "nb"\n')
    for data in (tmp_path, tmp_path / "exam.json"):
        with pytest.raises(UsageError, match="exam has no 'sv'") as raised:
            run.run(request(exam, tmp_path, data=data, languages=("sv",)), [], Silent())
        assert raised.value.fix == "--langs nb"
        assert run.run(request(exam, tmp_path, data=data), [], Silent()) == []
    other = tmp_path / "exam.sv.json"  # as a translation is called
    other.write_bytes((tmp_path / "exam.json").read_bytes())
    assert run.run(request(exam, tmp_path, data=other, languages=("sv",)), [], Silent()) == []
    manifest = {"model": "m", "from": "nb", "origin": "o", "language": "sv"}
    (tmp_path / "exam.sv.manifest.json").write_text(json.dumps(manifest))
    assert run.run(request(exam, tmp_path, data=other, languages=("sv",)), [], Silent()) == []
    with pytest.raises(UsageError, match="a translation into sv, not ml") as raised:
        run.run(request(exam, tmp_path, data=other, languages=("ml",)), [], Silent())
    assert raised.value.fix == "--langs sv"


def test_flips_of_two_tasks_say_so(exam, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(exam.read_text().replace('"exam"', '"other"'))
    one, two = (
        run.run(request(task, tmp_path), [Answerer("A", right_unless())], Silent())[0]
        for task in (exam, other)
    )
    with pytest.raises(BadRecords, match=r"task\.name is 'exam' in .* and 'other' in") as raised:
        summary.flips(one, two)
    assert raised.value.fix.startswith("run both on the same task")


def test_languages_that_a_task_lacks_are_skipped(tmp_path):
    progress, both = Notes(), request("x", tmp_path, languages=("en", "nb"), data=None)
    tasks = [definition.get("mixeval"), definition.get("belebele")]
    pairs = [(task.name, code) for task, code in run.pairs(tasks, both, progress)]
    assert pairs == [("mixeval", "en"), ("belebele", "en"), ("belebele", "nb")]
    (note,) = progress.notes
    assert "mixeval" in note and "'nb'" in note
    folder = replace(both, data=tmp_path)  # its files are in the language of the definition
    assert run.pairs(tasks[:1], folder, progress) == [(tasks[0], "en")]
    only = replace(folder, languages=("nb",))
    assert run.pairs(tasks[:1], only, progress) == [(tasks[0], "nb")]
    with pytest.raises(UsageError) as raised:
        run.pairs(tasks[:1], request("x", tmp_path, data=None), progress)
    assert raised.value.fix == "--langs en"


@dataclass
class Entry:
    id: str
    output: str


def test_separators_of_lines_are_kept_in_answers(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, Entry) as journal:
        journal.add(Entry("1", "a\u2028b\u2029c\x85d"))
    with path.open("a") as file:
        file.write('\n{"id": "2"}\n7\nnull\n["id", "output"]\n')  # not ours
    assert {i: e["output"] for i, e in Journal(path, Entry).entries.items()} == {
        "1": "a\u2028b\u2029c\x85d"
    }


def test_what_is_not_pinned_is_noted(exam, tmp_path, monkeypatch):
    rows = json.loads((tmp_path / "exam.json").read_text())
    newest = load.Rows(tuple(rows), {"a/b": "0123456789abcdef" * 2})
    monkeypatch.setattr(load, "rows", lambda *_: newest)
    exam.write_text(exam.read_text().replace("[source]", '[source]\nhub = "a/b"'))
    progress = Notes()
    a = Answerer("A", right_unless())
    (path,) = run.run(request(exam, tmp_path, data=None), [a], progress)
    assert any("a/b at 0123456789ab" in note for note in progress.notes)
    assert parquet.read(path).signature["task"]["pinned"] is False


def test_variants_that_cannot_be(exam, tmp_path):
    for task, variant, fix in (("xcopa", "letter", "--variant raw, token or byte"),
                               ("mixeval", "raw", "leave --variant out")):  # fmt: skip
        with pytest.raises(UsageError) as raised:
            run.run(request(task, tmp_path, variant=variant, languages=()), [], Silent())
        assert raised.value.fix == fix
    exam.write_text(exam.read_text().replace("\\n{lettered}", ""))
    with pytest.raises(UsageError) as raised:
        definition.load(exam)
    assert "{lettered}" in raised.value.what


def test_a_model_without_a_template_goes_on_from_the_prompt(quiz, tmp_path):
    seen = []

    def say(item):
        seen.append(item)
        return "7"

    base = Answerer("A", None, say)
    base.is_chat = False
    task = request("mixeval", tmp_path, data=quiz, shots=1, keep_text=True)
    (path,) = run.run(task, [base], Silent())
    ((role, text),) = seen[0].messages
    assert role == "" and text.endswith("\nSvar:")
    assert text.startswith("Spørsmål: Hva er 0 + 1?\nSvar så kort du kan.\nSvar: 1\n\nSpørsmål: ")
    assert seen[0].stop == ("\nSpørsmål:", "\nSvar:")
    table = parquet.read(path)
    assert records.words(table, "examples")[-1] + records.words(table, "prompt")[-1] == text


def test_other_rules_are_another_run(quiz, tmp_path, monkeypatch):
    answers = Answerer("A", None, lambda item: "7")
    (first,) = run.run(request("mixeval", tmp_path, data=quiz), [answers], Silent())

    def changed(code):
        locale = get_locale(code)
        return replace(locale, answer=replace(locale.answer, tail=("nå",)))

    monkeypatch.setattr(run, "get_locale", changed)
    (second,) = run.run(request("mixeval", tmp_path, data=quiz), [answers], Silent())
    assert second != first


def test_nothing_to_ask(exam, tmp_path):
    row = {"id": "1", "text": "", "ask": "", "choices": [], "right": 0}
    (tmp_path / "exam.json").write_text(json.dumps([row]))
    with pytest.raises(BadText) as raised:
        run.run(request(exam, tmp_path), [], Silent())
    assert raised.value.where == str(exam)
    assert "1 skipped: no question" in raised.value.what
    with pytest.raises(UsageError) as raised:
        run.run(request(exam, tmp_path, languages=("nb", "en")), [], Silent())
    assert raised.value.where == str(tmp_path / "exam.json")
    assert raised.value.fix.startswith("one at a time: --langs ")
    with pytest.raises(UsageError) as raised:
        run.run(request(exam, tmp_path, languages=()), [], Silent())
    assert raised.value.fix == "--langs en,nb"


# -- thoughts


class Thinker(Answerer):
    """A model that thinks aloud; its template may have the switch, or begin thoughts itself."""

    def __init__(self, say, has_switch=False, opened=""):
        super().__init__("T", None, say)
        self.has_switch, self.opened, self.items = has_switch, opened, []

    def generate(self, items):
        self.items += items
        return super().generate(items)


def plus_one(item):
    return str(int(re.findall(r"er (\d+)", item.messages[0][1])[-1]) + 1)


def thinks(item):
    return f"<think>\nIs it 7, or 8?\n</think>\n\n{plus_one(item)}"


def test_thoughts_are_kept_and_not_scored(quiz, tmp_path):
    plain, thinking = (
        run.run(request("mixeval", tmp_path / name, data=quiz, keep_text=True), [t], Silent())
        for name, t in (("a", Answerer("T", None, plus_one)), ("b", Thinker(thinks)))
    )
    assert [s.score for s in summary.scores(plain)] == [s.score for s in summary.scores(thinking)]
    assert summary.scores(thinking)[0].score.estimate == 1.0
    table = parquet.read(thinking[0])
    assert all(text.startswith("<think>\nIs it 7") for text in records.words(table, "output"))
    assert records.words(table, "prediction") == records.words(parquet.read(plain[0]), "prediction")
    assert summary.flips(*plain, *thinking).items == ()


def test_flips_show_answers_without_thoughts(quiz, tmp_path):
    paths = [
        run.run(request("mixeval", tmp_path / str(i), data=quiz, keep_text=True), [t], Silent())[0]
        for i, t in enumerate([Thinker(thinks), Thinker(lambda _: "<think>8\n</think>\nX")])
    ]
    flip = summary.flips(*paths).items[0]
    assert flip.output_a in map(str, range(1, 21)) and flip.output_b == "X"


@pytest.mark.parametrize("opened", [True, False])
def test_thoughts_that_are_cut_off_are_unread(opened, quiz, tmp_path):
    """Where a server's prompt begins them, no mark is in what is cut off: the others show it."""
    begin = "<think>\n" if opened else ""

    def some(item):
        ends = int(plus_one(item)) > 5
        return f"{begin}is it {plus_one(item)}" + (f"</think>\n{plus_one(item)}" if ends else "…")

    progress = Notes()
    paths = run.run(request("mixeval", tmp_path, data=quiz), [Thinker(some)], progress)
    (score,) = summary.scores(paths)
    assert (score.n_unparsed, score.n_cut, score.n_items) == (5, 5, 20)
    assert score.score.estimate == 0.75
    (note,) = [note for note in progress.notes if "--max-tokens" in note]
    assert "5 of 20 answers" in note and "5 of them in thoughts" in note
    assert "--max-tokens 2048" in note


def test_the_switch_is_an_option_of_a_task(quiz, tmp_path):
    own = tmp_path / "own.toml"
    text = (definition.paths()["mixeval"]).read_text().replace('name = "mixeval"', 'name = "own"')

    def asked(answerer, setting="", out=None, **changes):
        own.write_text(text + setting)
        folder = out or tmp_path / f"{len(list(tmp_path.iterdir()))}"
        task = request(own, tmp_path, data=quiz, out=folder, **changes)
        (path,) = run.run(task, [answerer], progress := Notes())
        protocol = parquet.read(path).signature["protocol"]
        del protocol["name"]
        has_note = any("not known to think" in note for note in progress.notes)
        tokens = [(i.thinking, i.max_tokens, i.thought_tokens) for i in answerer.items[:1]]
        return *(tokens or [None]), protocol, has_note

    on = "enable_thinking = true\n"
    more = {"thought_tokens": 4096}
    off, enabled = {"enable_thinking": False}, {"enable_thinking": True, **more}
    assert asked(Thinker(thinks, True)) == ((False, 512, 0), off, False)
    assert asked(Thinker(thinks, True), on) == ((True, 512, 4096), enabled, False)
    assert asked(Thinker(thinks, True), thinking=True) == ((True, 512, 4096), enabled, False)
    changes = {"thinking": False, "max_tokens": 9}
    assert asked(Thinker(thinks, True), on, **changes) == ((False, 9, 0), off, False)
    always = Thinker(thinks, opened="<think>")
    assert asked(always) == ((False, 512, 4096), more, False)
    first = asked(Thinker(thinks), out=tmp_path / "same")
    assert first == ((False, 512, 0), {}, False)
    assert asked(Thinker(thinks), on, out=tmp_path / "same")[0] is None  # the same, nothing asked
    assert asked(Thinker(thinks), on) == ((True, 512, 0), {}, True)
    with pytest.raises(UsageError, match="likelihood"):
        likelihoods = request("xcopa", tmp_path, thinking=True, languages=("it",))
        run.run(likelihoods, [], Silent())


@pytest.mark.parametrize(
    ("changes", "error", "fix"),
    [
        ({"tasks": ("mixevals",)}, UsageError, "task run mine.toml"),
        ({"tasks": ("exam.toml",)}, UsageError, None),
        ({"tasks": ("mixeval",), "data": None}, UsageError, "--langs en"),
        ({"languages": ("xx",)}, UsageError, "tasks/languages/xx.toml"),
        ({"data": Path("nowhere")}, BadText, "check the path"),
        ({"data": None}, UsageError, "--data FOLDER"),
        ({"quants": ("mistral",)}, UsageError, "--model path/x.gguf"),
        ({"quants": ("demo", "nowhere.gguf")}, BadModel, None),
        ({"quants": ("exam.json",)}, BadModel, None),
        ({"quants": ("hf:nothing",)}, UsageError, "hf:org/repo"),
        ({"variant": "letter", "tasks": ("xcopa",), "languages": ("it",)}, UsageError, "raw"),
    ],
)
def test_mistakes_are_told_before_anything_is_built(
    changes, error, fix, exam, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.toml"
    own.write_text(exam.read_text().replace('"exam"', '"own"'))
    exam.unlink()
    store = Store(tmp_path / "store")
    task = request(own.name, tmp_path, **{"quants": ("demo",), **changes})
    with pytest.raises(error) as raised:
        run.run_quants(task, Session(store, Silent()))
    assert fix is None or fix in raised.value.fix
    assert not store.root.exists() or not list(store.root.iterdir())
    assert not task.out.exists()
