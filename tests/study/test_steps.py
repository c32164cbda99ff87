"""A recipe as steps: what is made, once each, and what stands on what."""

import dataclasses
import operator
from collections import Counter
from types import SimpleNamespace

import pytest

from imatrix_lab.core.store import Store
from imatrix_lab.errors import UsageError
from imatrix_lab.study import calibrations, graph, steps
from imatrix_lab.study.cluster.split import parts_of, split
from imatrix_lab.study.context import Shared
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.kinds import kinds
from imatrix_lab.study.recipe import CalibrationSettings, Evaluation, Limits, Task
from tests.study import scored

GIB = 2**30
ID = operator.attrgetter("id")


@pytest.fixture
def shared(tmp_path):
    """A function: changes of the recipe -> what steps share, of models that do not exist."""

    def make(models=("demo",), **changes):
        recipe = scored.recipe(**{"keep": "scores", **changes})
        tools = SimpleNamespace(signature=lambda: {"commit": "x"}, backend="cpu")
        planned = tuple(
            dataclasses.replace(scored.model(name, f"sha256 of {name}")) for name in models
        )
        sizes = {(name, kind.label): GIB for name in models for kind in kinds(recipe)}
        store = Store(tmp_path / "store")
        return Shared(recipe, Folder(tmp_path / "study"), store, tools, planned, sizes)

    return make


def by_id(planned):
    return {step.id: step for step in planned}


def test_each_thing_is_made_once_and_stands_on_what_it_must(shared):
    texts = ("none", "nb", "en", "nb=0.25,en=0.75", "shuffled:nb")
    settings = CalibrationSettings(texts, samples=2, pooled=True)
    planned = by_id(steps.steps(shared(calibration=settings, types=("Q2_K",))))
    kinds_ = [step.kind for step in planned.values()]
    assert len(planned) == len(kinds_)
    assert kinds_.count("imatrix") == kinds_.count("corpus") - 1 == 6  # ml is only scored on
    assert kinds_.count("merge") == 2 + 2 and kinds_.count("quant") == 1 + 4 + 2 + 2 + 2
    assert planned["demo.imatrix.nb25-en75.2"].needs == ("demo.imatrix.nb.2", "demo.imatrix.en.2")
    assert planned["demo.imatrix.nb-pooled"].needs == ("demo.imatrix.nb.1", "demo.imatrix.nb.2")
    assert planned["demo.imatrix.shuffled-nb.1"].needs == ("demo.corpus.shuffled-nb.1",)
    quants = {step.id for step in planned.values() if step.kind == "quant"}
    assert planned["demo.quant.none.Q2_K"].needs == ()
    for text, on in (("nb", "nb.1"), ("ml", "ml")):
        score = planned[f"demo.score.{text}"]
        assert score.needs == (f"demo.corpus.{on}",) and set(score.uses) == quants
    loss = planned["demo.loss.none.Q2_K"]
    assert set(loss.uses) == {f"demo.imatrix.{x}" for x in ("nb.1", "nb.2", "en.1", "en.2")}
    tidy = planned["demo.tidy.1"]
    assert quants < set(tidy.after) and tidy.is_cleanup


def test_steps_come_after_what_they_stand_on(shared):
    planned = steps.steps(shared(models=("a", "b"), tasks=(Task("belebele", ("en", "nb")),)))
    seen: set[str] = set()
    for step in planned:
        assert seen.issuperset((*step.depends_on(), *step.after)), step.id
        seen.add(step.id)
    assert by_id(planned)["a.task.belebele.original"].needs == ("a.items.belebele",)
    assert {s.id.partition(".")[0] for s in planned} == {"a", "b"}


def test_parts_of_mixtures_are_no_calibrations_of_their_own(shared):
    settings = CalibrationSettings(("nb=0.5,en=0.5",))
    planned = by_id(steps.steps(shared(calibration=settings, evaluation=Evaluation(("nb",)))))
    assert {i for i in planned if ".imatrix." in i} == {
        "demo.imatrix.nb.1", "demo.imatrix.en.1", "demo.imatrix.nb50-en50.1",
    }  # fmt: skip
    assert {i.split(".")[2] for i in planned if ".quant." in i} == {"nb50-en50"}


def test_sizes_stand_on_what_all_types_of_a_calibration_share(shared, tiny):
    settings = CalibrationSettings(("nb", "nb=0.5,en=0.5", "none"), samples=2)
    types, quantizers = ("Q4_K_M", "size:Q4_K_M", "size:Q3_K_S"), ("imatrix", "feedback")
    ours = shared(types=types, quantizers=quantizers, calibration=settings)
    model = dataclasses.replace(ours.models[0], path=tiny, shards=(tiny,))
    planned = by_id(steps.steps(dataclasses.replace(ours, models=(model,))))
    counts = [step.kind for step in planned.values()]
    assert counts.count("sensitivity") == 2 * 2 and counts.count("errors") == 2 * 2
    assert counts.count("quant") == 1 + 4 * 6 and counts.count("loss") == 1 + 4 * 3
    assert planned["demo.sensitivity.en.1"].needs == ("demo.imatrix.en.1",)
    mixed = [f"demo.{x}" for x in ("imatrix.nb50-en50.1", "errors.nb50-en50.1")]
    mixed += [f"demo.{x}.{y}.1" for y in ("nb", "en") for x in ("imatrix", "sensitivity")]
    for kind in ("size-Q4_K_M", "size-Q3_K_S", "size-Q4_K_M+feedback"):
        assert planned[f"demo.quant.nb50-en50.1.{kind}"].needs == tuple(mixed)
    plain = planned["demo.quant.nb50-en50.1.Q4_K_M+feedback"]
    assert plain.needs == ("demo.imatrix.nb50-en50.1",)
    assert "demo.quant.none.size-Q4_K_M" not in planned
    for step in planned.values():
        if step.kind == "loss":
            assert {"demo.sensitivity.nb.1", "demo.sensitivity.en.1"} < set(step.uses)


def test_batches_fit_on_the_disk_and_wait_for_each_other(shared):
    ours = shared(limits=Limits(disk_gib=4.0))
    planned = by_id(steps.steps(ours))
    quants = [s for s in planned.values() if s.kind == "quant"]
    tidies = [s for s in planned.values() if s.is_cleanup]
    assert len(quants) == 14 and len(tidies) == 4  # 4 + 4 + 4 + 2
    for number, tidy in enumerate(tidies, 1):
        batch = [q for q in quants if q.id in tidy.after]
        assert 1 <= len(batch) <= 4
        before = (f"demo.tidy.{number - 1}",) if number > 1 else ()
        assert all(q.after == before for q in batch)
        assert set(planned[f"demo.score.nb.{number}"].uses) == {q.id for q in batch}
    assert planned["demo.score.nb.1"].inputs["teacher"] == "live"


def test_a_quant_that_never_fits_is_told_before_any_work(shared):
    with pytest.raises(UsageError, match=r"Q4_K_M of demo .* limits.disk_gib"):
        steps.steps(shared(limits=Limits(disk_gib=0.5)))


def test_with_little_memory_models_are_there_one_at_a_time(shared):
    def teachers(limits):
        planned = steps.steps(shared(limits=limits))
        return {s.inputs["teacher"] for s in planned if s.kind == "score"}

    assert teachers(Limits(memory_gib=64.0)) == {"live"}
    assert teachers(Limits(memory_gib=8.0)) == {"cached"}
    assert teachers(Limits(memory_gib=8.0, disk_gib=2.0)) == {"live"}


def test_keys_change_with_what_determines_a_result_and_nothing_else(shared):
    one = graph.keys(steps.steps(shared()))
    jobs = graph.keys(steps.steps(shared(limits=Limits(jobs=7, threads=3))))
    assert one == jobs
    seed = graph.keys(steps.steps(shared(seed=5)))
    same = {name for name, key in seed.items() if one[name] == key}
    assert same == {"demo.quant.none.Q4_K_M", "demo.quant.none.Q3_K_S", "demo.tidy.1"}


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("nb=0.333,en=0.667", "nb33-3-en66-7"),
        ("nb=0.2,en=0.2,ml=0.2,nn=0.1,de=0.1,fr=0.1,es=0.1", None),
    ],
)
def test_labels_survive_in_metadata(word, label):
    """Nothing that a reader of metadata would cut, at most 40 characters, and of their own."""
    (planned,) = calibrations.calibrations(scored.recipe(calibration=CalibrationSettings((word,))))
    assert planned.label == (label or planned.label)
    assert len(planned.label) <= 40 and "." not in planned.label
    assert sum(planned.shares().values()) == pytest.approx(1)


@pytest.mark.parametrize("memory_gib", [0.0, 1.0])
def test_parts_score_every_quant_once_and_change_no_other_step(shared, memory_gib):
    """Whether the original is in memory with the quants, or comes first with one of them."""
    evaluation, limits = Evaluation(("nb", "en")), Limits(memory_gib=memory_gib)
    every = steps.steps(shared(evaluation=evaluation, limits=limits))
    assert split(every, {}, 2) == list(every)
    planned = by_id(split(every, {}, 7))
    parts = {step: planned.pop(step) for step in [s for s in planned if planned[s].part_of]}
    assert graph.keys(every) == graph.keys(planned.values())
    scores = [s for s in planned.values() if s.kind == "score" and parts_of(s)]
    for step in scores:
        own = [parts[name] for name in step.after]
        assert sorted(q for part in own for q in part.uses) == sorted(step.uses)
        assert [q.step for part in own for q in part.run.args[3]] == [
            q for part in own for q in part.uses
        ]
        assert len(own) == (5 if memory_gib else 4)
        assert {part.after for part in own[1:]} == {(own[0].id,) if memory_gib else ()}
    assert len(scores) == 2 and "demo.score.nb.part-2" in parts
    done = graph.StepRecord(graph.keys(every)["demo.score.nb"], tuple(own[0].uses), {}, 1.0)
    complete = dataclasses.replace(done, parts=planned["demo.score.nb"].uses)
    for record, n in ((done, 4), (complete, 0)):
        again = split(every, {"demo.score.nb": record}, 7)
        assert sum(s.id.startswith("demo.score.nb.part-") for s in again) >= n > -1
        assert bool(parts_of(by_id(again)["demo.score.nb"])) == bool(n)


def test_tasks_have_parts_as_long_as_they_are(shared):
    """No machine is to have one long task when the others have nothing left."""
    tasks = Task("belebele", ("nb", "en", "ml"), limit=300), Task("mixeval", ("en",), limit=300)
    every = steps.steps(shared(tasks=tasks))  # 14 quants and the original
    for n_machines in (1, 3):
        assert split(every, {}, n_machines) == list(every)
    planned = split(every, {}, 30)
    parts = [step for step in planned if step.part_of]
    wholes = [step for step in planned if not step.part_of]
    assert graph.keys(every) == {name: graph.keys(planned)[name] for name in map(ID, wholes)}
    costs = {step.id: step.cost for step in every}
    for step in (s for s in wholes if s.kind == "task" and parts_of(s)):
        own = [part for part in parts if part.part_of == step.id]
        assert step.after == tuple(map(ID, own)) and {part.needs for part in own} == {step.needs}
        assert sum(part.cost for part in own) == pytest.approx(costs[step.id])
        assert [part.run.keywords["part"] for part in own] == [(i, len(own)) for i in range(3)]
    assert {s.id for s in wholes if parts_of(s)} >= {"demo.task.belebele.original"}
    assert {part.kind for part in parts if "mixeval" in part.id} == set()
    again = graph.keys(split(every, {}, 40))
    thirds = [part.id for part in parts if part.kind == "task"]
    assert all(again[name] != graph.keys(planned)[name] for name in thirds)  # now of four


def test_imatrices_have_no_more_parts_than_shards_and_moments_none(shared):
    def parts(n_machines, **changes):
        planned = split(steps.steps(shared(**changes)), {}, n_machines)
        return Counter(step.part_of for step in planned if step.kind == "imatrix" and step.part_of)

    every = ["demo.imatrix.en.1", "demo.imatrix.en.2", "demo.imatrix.nb.1", "demo.imatrix.nb.2"]
    assert parts(6) == dict.fromkeys(every, 2)
    assert parts(90) == dict.fromkeys(every, 2)  # the shards of 65,536 tokens
    assert not parts(90, quantizers=("feedback",))
    few = CalibrationSettings(("nb",), tokens=20_000)
    assert not parts(90, calibration=few)
