"""What tasks are called in the steps of a study, and what determines them."""

import dataclasses
from types import SimpleNamespace

import pytest

from imatrix_lab.study import graph, steps, tasks
from imatrix_lab.study.context import Shared
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.recipe import CalibrationSettings, Limits, Recipe, Task
from tests.study import scored

TOOLS = SimpleNamespace(signature=lambda: {"commit": "c0ffee"}, backend="cpu")


def shared(folder, *tasks: Task, **changes) -> Shared:
    """What steps of a model that is only talked about share."""
    recipe = Recipe(
        1, "x", ("Q4_K_M",), CalibrationSettings(("nb",), 2048), tasks=tasks,
        limits=Limits(backend="cpu"), **changes,
    )  # fmt: skip
    sizes = {("demo", "Q4_K_M"): 1000}
    return Shared(recipe, Folder(folder), None, TOOLS, (scored.model(),), sizes)


def test_a_task_that_is_there_twice_has_its_languages_in_its_steps(tmp_path):
    once, nb, en = Task("xnli", ("zh",)), Task("belebele", ("nb",)), Task("belebele", ("en",), 9)
    ids = [step.id for step in steps.steps(shared(tmp_path, once, nb, en))]
    assert len(set(ids)) == len(ids)
    assert {i for i in ids if i.startswith("demo.items.")} == {
        "demo.items.xnli", "demo.items.belebele-nb", "demo.items.belebele-en",
    }  # fmt: skip
    assert {"demo.task.belebele-nb.nb.1.Q4_K_M", "demo.task.belebele-en.original"} <= set(ids)


def test_two_steps_of_one_id_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"several steps are called demo\.items\.belebele-nb"):
        steps.steps(shared(tmp_path, Task("belebele", ("nb",)), Task("belebele", ("nb",), 9)))


def items_key(folder, task: Task) -> str:
    every = steps.steps(shared(folder, task))
    return graph.keys(every)["demo.items.exam"]


def test_items_are_determined_by_the_files_of_a_task_wherever_they_lie(tmp_path, monkeypatch):
    own = scored.exam(tmp_path / "a", 4)
    data = own.with_name("exam.json")
    monkeypatch.chdir(tmp_path)
    task = Task("a/exam.toml", ("nb",), data="a/exam.json")
    key = items_key(tmp_path, task)
    monkeypatch.chdir(tmp_path / "a")
    beside = dataclasses.replace(task, name="exam.toml", data="exam.json")
    assert items_key(tmp_path, beside) == key
    for file in (data, own):
        before = file.read_text()
        file.write_text(before + "\n")
        assert items_key(tmp_path, beside) != key
        file.write_text(before)
    assert items_key(tmp_path, beside) == key


def test_a_folder_of_data_is_its_files(tmp_path):
    own = scored.exam(tmp_path, 4)
    folder = tmp_path / "rows"
    (folder / "nb").mkdir(parents=True)
    file = folder / "nb" / "exam.json"
    file.write_text("[]")
    task = Task(str(own), ("nb",), data=str(folder))
    found = tasks.inputs(task, ("nb",))["data"]
    assert list(found) == ["nb/exam.json"]
    file.rename(folder / "exam.json")
    assert list(tasks.inputs(task, ("nb",))["data"]) == ["exam.json"]
    (folder / "exam.json").write_text("[1]")
    assert list(tasks.inputs(task, ("nb",))["data"].values()) != list(found.values())
