"""A study from its recipe to its results: read this first."""

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.report import html, markdown, results
from imatrix_lab.report.results import Results
from imatrix_lab.study import graph, scheduler, status, steps, validate
from imatrix_lab.study import recipe as recipes
from imatrix_lab.study.analyse import assemble, gather
from imatrix_lab.study.context import Shared, prepare
from imatrix_lab.study.folder import STOPPED, STUDIES, Folder
from imatrix_lab.study.graph import Step
from imatrix_lab.study.plan import plan as planning
from imatrix_lab.study.plan.plan import Plan
from imatrix_lab.study.recipe import Recipe
from imatrix_lab.study.scheduler import Outcome
from imatrix_lab.study.status import DONE, FAILED, Watch

HTML, MARKDOWN = "report.html", "report.md"


@dataclass(frozen=True)
class Finished:
    """What a study found, and where it lies."""

    folder: Path
    found: Results


def begin(path: Path, out: Path | None, jobs: int | None, session: Session) -> Finished:
    """Run the study of a recipe, or go on with it.

    Raises
    ------
    UsageError : a recipe that cannot be meant, or a folder that is another study's.
    """
    recipe = recipes.load(path)
    validate.check(recipe)
    folder = _folder(recipe, out)
    folder.begin(path)
    with folder.held():
        folder.tell({**folder.status(), "recipe_folder": str(path.absolute().parent)})
        return _go_on(folder, jobs, session)


def plan(path: Path, out: Path | None, session: Session) -> Plan:
    """Return what a study would do.

    Raises
    ------
    UsageError : a recipe that cannot be meant.
    """
    recipe = recipes.load(path)
    return planning.plan(recipe, _folder(recipe, out), session)


def _folder(recipe: Recipe, out: Path | None) -> Folder:
    return Folder((out or STUDIES / recipe.name).absolute())


def resume(folder: Folder, jobs: int | None, session: Session) -> Finished:
    """Go on with a study that was stopped, or try again what failed."""
    validate.check(folder.recipe())
    with folder.held():
        return _go_on(folder, jobs, session)


def _go_on(folder: Folder, jobs: int | None, session: Session) -> Finished:
    folder.tell(status.preparing(folder.status()))
    shared = prepare(folder.recipe(), folder, session)
    every = steps.steps(shared)
    records = folder.records()
    there = graph.finished(every, records)
    todo = graph.to_run(every, there)
    state = STOPPED
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(
            session.progress.task(
                f"study {shared.recipe.name}", max(1.0, sum(s.cost for s in todo)), ""
            )
        )
        ids = {step.id for step in todo}
        done = [step for step in every if step.id in there and step.id not in ids]
        watch = Watch(todo, done, folder, session.progress, whole)
        stack.callback(lambda: watch.close(state))
        outcome = scheduler.run(
            every, records, shared.limits(jobs), watch, folder.keep, folder.of("logs")
        )
        found = _results(shared, every, outcome, watch.total_s(), session.progress)
        state = FAILED if found.missing else DONE
    return Finished(folder.path, found)


def _results(
    shared: Shared, every: Sequence[Step], outcome: Outcome, total_s: float, progress: Progress
) -> Results:
    """Assemble and write results and reports."""
    made = gather.made(shared, every, outcome, total_s)
    found = assemble.assemble(made, progress)
    folder = shared.folder
    results.write(folder.of(results.FILE), found)
    html.write(found, folder.of(HTML))
    markdown.write(found, folder.of(MARKDOWN))
    if not shared.keeps_quants:
        shutil.rmtree(folder.of("work"), ignore_errors=True)
    return found
