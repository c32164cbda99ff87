"""A study from its recipe to its results: read this first."""

import contextlib
import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.core.session import Session
from imatrix_lab.report import html, markdown, results
from imatrix_lab.report.results import Results
from imatrix_lab.study import graph, status, validate
from imatrix_lab.study.analyse import assemble, gather
from imatrix_lab.study.cluster import start
from imatrix_lab.study.cluster.client import UNBOUNDED, Cluster
from imatrix_lab.study.context import Shared, prepare
from imatrix_lab.study.folder import STOPPED, Folder
from imatrix_lab.study.graph import Steps
from imatrix_lab.study.recipe import load
from imatrix_lab.study.scheduler import Capacity, Scheduler
from imatrix_lab.study.status import DONE, FAILED, Watch
from imatrix_lab.study.steps import steps

HTML, MARKDOWN = "report.html", "report.md"


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
    folder.begin(path)
    with folder.locked():
        folder.write_status({**folder.status(), "recipe_folder": str(path.absolute().parent)})
        return _run(folder, jobs, session, cluster)


def resume(folder: Folder, jobs: int | None, session: Session, cluster: str = "") -> Finished:
    """Continue a study that was stopped, or retry what failed."""
    validate.check(folder.recipe())
    with folder.locked():
        return _run(folder, jobs, session, cluster)


def _run(folder: Folder, jobs: int | None, session: Session, cluster: str) -> Finished:
    folder.write_status(status.preparing(folder.status()))
    recipe = folder.recipe()
    if not cluster:
        shared = prepare(recipe, folder, session)
        return _work(shared, steps(shared), shared.capacity(jobs), session)
    with start.opened(cluster, folder, session) as machines:
        shared = machines.prepare(recipe)
        every = machines.steps(steps(shared))
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
    records = folder.records()
    finished = graph.finished(every, records)
    todo = graph.to_run(every, finished)
    done = [step for step in every if step.id in finished and step not in todo]
    state = STOPPED
    with contextlib.ExitStack() as stack:
        title, cost = f"study {shared.recipe.name}", max(1.0, sum(s.cost for s in todo))
        task = stack.enter_context(session.progress.task(title, cost, ""))
        watch = Watch(todo, done, folder, session.progress, task)
        stack.callback(lambda: watch.close(state))
        if machines:
            machines.watch = watch
        logs = folder.of("logs")
        outcome = Scheduler(every, records, capacity, watch, folder.write_record, logs).run()
        made = gather.products(shared, every, outcome, watch.total_s())
        study_results = assemble.assemble(made, session.progress)
        results.write(folder.of(results.FILE), study_results)
        html.write(study_results, folder.of(HTML))
        markdown.write(study_results, folder.of(MARKDOWN))
        shutil.rmtree(folder.of("work"), ignore_errors=True)
        state = FAILED if study_results.missing else DONE
    return Finished(folder.path, study_results)
