"""How data say which option is right, and what is refused because they do not."""

import json
from pathlib import Path

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import BadText
from imatrix_lab.tasks import definition, golds, run
from imatrix_lab.tasks.items import make_items, with_gold_kind
from imatrix_lab.tasks.locale import get_locale
from imatrix_lab.types import ComputeOptions, TaskRequest
from tests.tasks.fakes import Answerer

OPTIONS = [["Bergen", "Hamar", "Oslo", "Bodø"], ["Alkohol", "H2O", "Olje", "Melk"],
           ["Mars", "Jorden", "Venus", "Jupiter"]]  # fmt: skip
RIGHT = [2, 1, 3]


def task_in(folder: Path, gold_is: str = "") -> definition.Definition:
    path = folder / "one.toml"
    path.write_text(
        'name = "one"\ntitle = "One"\nscorer = "mixeval"\nlicence = "x"\ncitation = "x"\n'
        '[source]\nfiles = ["one.json"]\n[fields]\nquestion = "{question}"\n'
        'options = "{options}"\ngold = "{answer}"\n'
        + (f'gold_is = "{gold_is}"\n' if gold_is else "")
        + '[prompt]\nask = "{question}\\n{lettered}"\nmax_tokens = 16\n'
    )
    return definition.load(path)


def rows_of(answers):
    triples = zip(OPTIONS, answers, strict=True)
    return [{"question": f"{i}?", "options": o, "answer": a} for i, (o, a) in enumerate(triples)]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([3, 2, 4], "from 1"),
        (["3", "2", "4"], "from 1"),
        (["3.0", "2.0", "4.0"], "from 1"),
        ([["3"], ["2"], ["4"]], "from 1"),
        (["C", "B", "D"], "letter"),
        (["c", "(b)", "D."], "letter"),
        (["C. Oslo", "B) H2O", "D: Jupiter"], "letter"),
        (["Ｃ", "Ｂ", "Ｄ"], "letter"),
        (["Oslo", "H2O", "Jupiter"], "text"),
        (["oslo", "h2o", " Jupiter. "], "text"),
        ([[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], "one-hot"),
        ([[False, False, True, False], [False, True, False, False], [False, False, False, True]],
         "one-hot"),
        (["[0, 0, 1, 0]", "[0 1 0 0]", "[0.0, 0.0, 0.0, 1.0]"], "one-hot"),
        (["0;0;1;0", "0;1;0;0", "0;0;0;1"], "one-hot"),
    ],
)  # fmt: skip
def test_golds_are_what_the_data_show(answers, kind, tmp_path):
    task, note = with_gold_kind(rows_of(answers), task_in(tmp_path), get_locale("nb"))
    assert task.fields.gold_is == kind
    assert kind in note
    items, rejected = make_items(rows_of(answers), task_in(tmp_path), get_locale("nb"))
    assert [item.right for item in items] == RIGHT
    assert not rejected


def test_a_zero_says_that_they_count_from_it(tmp_path):
    items, _ = make_items(rows_of([2, 0, 1]), task_in(tmp_path), get_locale("nb"))
    assert [item.right for item in items] == [2, 0, 1]


def test_what_the_data_do_not_tell_is_said(tmp_path):
    """No 0 and no 4: from 0, as the documentation has it."""
    task, note = with_gold_kind(rows_of([2, 1, 3]), task_in(tmp_path), get_locale("nb"))
    assert task.fields.gold_is == "from 0"
    assert "do not tell" in note


@pytest.mark.parametrize(
    "answers",
    [
        [0, 4, 2],  # both ends
        ["A", 2, 3],
        ["C", "H2O", "D"],
        [[0, 0, 1, 0], 2, 3],
    ],
)
def test_golds_that_contradict_each_other_are_refused(answers, tmp_path):
    with pytest.raises(BadText, match="not of one kind") as refused:
        make_items(rows_of(answers), task_in(tmp_path), get_locale("nb"))
    assert "gold_is" in str(refused.value.fix)
    assert refused.value.where == str(tmp_path / "one.toml")


@pytest.mark.parametrize(
    ("written", "answers", "remedy"),
    [
        ("from 0", [3, 2, 4], "from 1"),
        ("from 1", [2, 0, 1], "from 0"),
        ("letter", [3, 2, 4], "from 1"),
        ("from 0", ["Oslo", "H2O", "Jupiter"], "text"),
    ],
)
def test_a_definition_that_the_data_contradict_is_refused(written, answers, remedy, tmp_path):
    locale = get_locale("nb")
    with pytest.raises(BadText) as refused:
        make_items(rows_of(answers), task_in(tmp_path, written), locale)
    assert f'gold_is = "{remedy}"' in str(refused.value.fix)
    items, _ = make_items(rows_of(answers), task_in(tmp_path, remedy), locale)  # the remedy helps
    assert len(items) == 3


def test_rows_that_cannot_be_read_are_left_out_and_counted(tmp_path):
    locale, rows = get_locale("nb"), rows_of([3, 2, 4])
    rows += [{**rows[0], "answer": answer} for answer in ("?", 7, None, 2.5)]
    items, rejected = make_items(rows, task_in(tmp_path), locale)
    assert [item.right for item in items] == RIGHT
    assert sum(rejected.values()) == 4


def test_options_that_are_numbers():
    numbers = [("12", ["10", "12", "14"]), ("14", ["10", "12", "14"])]
    assert golds.kind_of(numbers) == ("text", True)
    same = [("3", ["1", "2", "3"]), ("2", ["1", "2", "3"])]
    assert golds.kind_of(same) == ("from 1", True)
    with pytest.raises(golds.Contradiction, match="do not tell"):
        golds.kind_of([("2", ["2", "1", "0"]), ("0", ["2", "1", "0"])])


def test_it_is_said_before_anything_is_asked(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(rows_of([3, 2, 4])))
    task_in(tmp_path)
    lines = []

    class Notes(Silent):
        def say(self, message):
            lines.append(message)

    def answer(item):
        assert any("count from 1" in line for line in lines)
        return "CBD"[int(item.id)]

    request = TaskRequest(
        (str(tmp_path / "one.toml"),), ("nb",), ("x",), tmp_path / "out", ComputeOptions("cpu"),
        data=tmp_path,
    )  # fmt: skip
    (path,) = run.run(request, [Answerer("x", generate=answer)], Notes())
    from imatrix_lab.records import parquet

    assert parquet.read(path).columns["score"].tolist() == [1.0, 1.0, 1.0]
