"""A study from its recipe to its results: read this first."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.core.session import Session
from imatrix_lab.report import html, markdown, results
from imatrix_lab.report.results import Missing, Results
from imatrix_lab.study import graph, status, validate
from imatrix_lab.study.analyse import assemble, gather
from imatrix_lab.study.cluster import start
from imatrix_lab.study.cluster.client import UNBOUNDED, Cluster
from imatrix_lab.study.cluster.split import split
from imatrix_lab.study.context import Shared, prepare
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.graph import Steps
from imatrix_lab.study.recipe import Limits, load
from imatrix_lab.study.scheduler import Capacity, Outcome, Scheduler
from imatrix_lab.study.status import DONE, FAILED, Watch
from imatrix_lab.study.steps import steps

HTML, MARKDOWN = "report.html", "report.md"
FETCHING = ("corpus", "items")
"""Kinds of steps that take something from the network."""


@dataclass(frozen=True)
class Finished:
    """A study's folder and results."""

    folder: Path
    results: Results


def begin(
    path: Path, out: Path | None, jobs: int | None, session: Session, cluster: str = ""
) -> Finished:
    """Run the study of a recipe, or continue it; on a `cluster` as `cluster.start` has them."""
    recipe = load(path)
    validate.check(recipe)
    folder = Folder.for_recipe(recipe, out)
    with _begun(folder, path):
        return _run(folder, jobs, session, cluster)


def resume(folder: Folder, jobs: int | None, session: Session, cluster: str = "") -> Finished:
    """Continue a study that was stopped, or retry what failed."""
    validate.check(folder.recipe())
    with folder.locked():
        folder.write_status(status.preparing(folder.status()))
        return _run(folder, jobs, session, cluster)


def fetch(path: Path, out: Path | None, session: Session) -> tuple[Missing, ...]:
    """Run the steps that take something from the network; return what could not be had.

    The study then finds it in the store, on machines without a network too: models and the source
    of llama.cpp, which is built here for the processor alone, texts, items of tasks.
    """
    recipe = load(path)
    validate.check(recipe)
    folder = Folder.for_recipe(recipe, out)
    with _begun(folder, path):
        recipe = dataclasses.replace(folder.recipe(), limits=Limits(backend="cpu"))
        shared = prepare(recipe, folder, session)
        every = [dataclasses.replace(s, is_target=True) for s in steps(shared)]
        every = [step for step in every if step.kind in FETCHING]
        with _scheduled(shared, every, shared.capacity(None), session) as (outcome, _):
            return (*shared.missing, *outcome.missing)


@contextlib.contextmanager
def _begun(folder: Folder, recipe: Path) -> Iterator[None]:
    """Hold the folder of a recipe's study, new or continued."""
    folder.begin(recipe)
    with folder.locked():
        before = {**folder.status(), "recipe_folder": str(recipe.absolute().parent)}
        folder.write_status(status.preparing(before))
        yield


def _run(folder: Folder, jobs: int | None, session: Session, cluster: str) -> Finished:
    recipe = folder.recipe()
    if not cluster:
        shared = prepare(recipe, folder, session)
        return _work(shared, steps(shared), shared.capacity(jobs), session)
    with start.opened(cluster, folder, session) as machines:
        shared = machines.prepare(recipe)
        every = machines.steps(split(steps(shared), folder.records(), machines.count()))
        shared = dataclasses.replace(shared, recipe=recipe)  # as its user wrote it
        return _work(shared, every, UNBOUNDED, session, machines)


def _work(
    shared: Shared,
    every: Steps,
    capacity: Capacity,
    session: Session,
    machines: Cluster | None = None,
) -> Finished:
    folder = shared.folder
    with _scheduled(shared, every, capacity, session, machines) as (outcome, watch):
        made = gather.products(shared, every, outcome, watch.total_s())
        study_results = assemble.assemble(made, session.progress)
        results.write(folder.of(results.FILE), study_results)
        html.write(study_results, folder.of(HTML))
        markdown.write(study_results, folder.of(MARKDOWN))
        shutil.rmtree(folder.of("work"), ignore_errors=True)
        if machines:
            machines.forget()
        watch.state = FAILED if study_results.missing else DONE
    return Finished(folder.path, study_results)


@contextlib.contextmanager
def _scheduled(
    shared: Shared,
    every: Steps,
    capacity: Capacity,
    session: Session,
    machines: Cluster | None = None,
) -> Iterator[tuple[Outcome, Watch]]:
    """Run steps, and give what came of it; at the end the study counts as stopped, unless told."""
    folder = shared.folder
    records = folder.records()
    finished = graph.finished(every, records)
    todo = graph.to_run(every, finished)
    done = [step for step in every if step.id in finished and step not in todo]
    title, cost = f"study {shared.recipe.name}", max(1.0, sum(s.cost for s in todo))
    with (
        session.progress.task(title, cost, "") as task,
        contextlib.closing(Watch(todo, done, folder, session.progress, task)) as watch,
    ):
        if machines:
            machines.watch = watch
        logs = folder.of("logs")
        outcome = Scheduler(every, records, capacity, watch, folder.write_record, logs).run()
        yield outcome, watch
