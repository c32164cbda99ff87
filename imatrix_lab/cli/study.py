"""Studies: a recipe in, a report out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.core import config
from imatrix_lab.core.format import duration, quantity, size, some

if TYPE_CHECKING:
    from imatrix_lab.report.results import Missing, Power
    from imatrix_lab.study.folder import Folder
    from imatrix_lab.study.plan.placement import Placement
    from imatrix_lab.study.plan.plan import Plan
    from imatrix_lab.study.run import Finished

FOLDER = options.PathType(exists=True, file_okay=False)
JOBS_HELP = "Steps at a time. [default: the recipe's, or as cores and memory allow]"
JOBS = click.option("--jobs", type=click.IntRange(1, 1024), metavar="N", help=JOBS_HELP)
CLUSTER = click.option(
    "--cluster", default="", metavar="WHERE",
    help="Run the steps on several machines (docs/cluster.md): tls://HOST:PORT of a Dask"
    " scheduler, FILE.json for workers that find this study by that file, ssh:HOST,HOST or"
    " slurm:FILE.toml.",
)  # fmt: skip


@click.group()
def study() -> None:
    """Run a whole experiment from a recipe file."""


@study.command("run")
@click.argument("recipe")
@click.option("--out", type=options.PathType(), help="[default: studies/NAME]")
@click.option("--dry-run", is_flag=True, help="Print the plan: steps, time, disk, power.")
@JOBS
@CLUSTER
@options.JSON
def run(
    recipe: str, out: Path | None, dry_run: bool, jobs: int | None, cluster: str, as_json: bool
) -> int | None:
    """Run the study of RECIPE, or continue it; exit status 1 if steps failed.

    RECIPE is a TOML file, or the name of one that comes with the package (quick-nb).

    \b
    Example:
      imatrix-lab study run recipes/quick-nb.toml
    """
    from imatrix_lab.study.cluster import start
    from imatrix_lab.study.folder import Folder
    from imatrix_lab.study.plan.plan import plan
    from imatrix_lab.study.recipe import find, load
    from imatrix_lab.study.run import begin

    path = find(recipe)
    if not dry_run:
        return _print_results(begin(path, out, jobs, options.session(), cluster), as_json)
    settings, session = load(path), options.session()
    folder, placement = Folder.for_recipe(settings, out), None
    folder.check(path)
    if cluster:
        with start.opened(cluster, folder, session) as machines:
            planned, placement = machines.plan(settings)
    else:
        planned = plan(settings, folder, session)
    if as_json:
        placed = {"placement": placement} if placement else {}
        options.emit(config.plain(vars(planned) | placed))
        return None
    show(planned)
    if placement:
        _show_placement(placement)
    return None


@study.command("fetch")
@click.argument("recipe")
@click.option("--out", type=options.PathType(), help="[default: studies/NAME]")
def fetch(recipe: str, out: Path | None) -> int:
    """Fetch what the study of RECIPE takes from the network; exit status 1 if something is missing.

    Models, texts, items of tasks and llama.cpp's source; run it again to go on. Then `study run`
    needs no network, here or on machines that see the same IMATRIX_LAB_CACHE and Hub cache.

    \b
    Example:
      imatrix-lab study fetch recipes/quick-nb.toml
    """
    from imatrix_lab.study.recipe import find
    from imatrix_lab.study.run import fetch

    session, path = options.session(), find(recipe)
    missing = fetch(path, out, session)
    _print_missing(missing)
    if not missing:
        click.echo(f"{path.stem}: all that it takes from the network is in {session.store.root}")
    return 1 if missing else 0


@study.command("resume")
@click.argument("folder", required=False, metavar="[DIR]", type=FOLDER)
@JOBS
@CLUSTER
@options.JSON
def resume(folder: Path | None, jobs: int | None, cluster: str, as_json: bool) -> int:
    """Continue a study that was stopped, and retry what failed.

    DIR is the study's folder. [default: the newest under studies/]

    \b
    Example:
      imatrix-lab study resume studies/quick-nb
    """
    from imatrix_lab.study import run

    finished = run.resume(_folder(folder), jobs, options.session(), cluster)
    return _print_results(finished, as_json)


@study.command("worker")
@click.argument("address", required=False, default="", metavar="[ADDRESS]")
@click.option(
    "--scheduler-file",
    type=options.PathType(),
    help="Find the scheduler by this file, which may come later.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Large steps at a time, which share the cores.",
)
@click.option(
    "--models",
    type=FOLDER,
    multiple=True,
    metavar="FOLDER",
    help="Where models are on this machine, if not at the recipe's path; repeatable.",
)
@click.option("--name", default="", help="What it is called in status. [default: host and process]")
@options.BACKEND
def worker(
    address: str,
    scheduler_file: Path | None,
    jobs: int,
    models: tuple[Path, ...],
    name: str,
    backend: str | None,
) -> None:
    """Let this machine work for studies on a cluster, until Ctrl-C.

    ADDRESS is a Dask scheduler's, tls://HOST:PORT. The worker waits ten minutes for one.

    \b
    Example:
      imatrix-lab study worker --scheduler-file /shared/scheduler.json
    """
    from imatrix_lab.llamacpp.toolchain import default_backend
    from imatrix_lab.study.cluster import worker

    if bool(address) == bool(scheduler_file):
        raise click.UsageError("give either an ADDRESS or --scheduler-file")
    session = options.session()
    own = worker.describe(name, backend or default_backend(), jobs, models, session)
    worker.serve(scheduler_file or address, own, session)


@study.command("status")
@click.argument("folder", required=False, metavar="[DIR]", type=FOLDER)
@options.JSON
def status(folder: Path | None, as_json: bool) -> None:
    """Print what is done, what is running and the time left, what failed and why.

    DIR is the study's folder. [default: the newest under studies/]

    \b
    Example:
      imatrix-lab study status
    """
    where = _folder(folder)
    current = where.current_status()
    if as_json:
        return options.emit(current)
    steps = current["steps"].values()
    counts = Counter(step["state"] for step in steps)
    words = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    left = current["left_s"]
    rest = f", about {duration(left)} left" if current["state"] == "running" and left else ""
    share = f"{100 * current['share']:.0f} %"
    click.echo(f"{where.path.name}: {current['state']}, {share}{rest}; {words}")
    alike: dict[tuple[str, str], list[str]] = {}
    for step in steps:
        if step["state"] not in ("waiting", "done"):
            alike.setdefault((step["state"], _detail(step)), []).append(step["what"])
    table = new_table("step", "state", "detail", n_text=3)
    for (state, detail), names in alike.items():
        table.add_row(escape(some(names)), state, escape(detail))
    if table.row_count:
        stdout.print(table)
    if current["state"] in ("stopped", "failed"):
        _note(f"continue: imatrix-lab study resume {where.path}")


def _folder(path: Path | None) -> Folder:
    from imatrix_lab.study.folder import Folder

    return Folder(path.absolute()) if path else Folder.newest()


def _note(text: str) -> None:
    stderr.print(text, markup=False, soft_wrap=True)


def _print_results(finished: Finished, as_json: bool) -> int:
    answer, missing = finished.results.answer, finished.results.missing
    if as_json:
        data = {"folder": finished.folder, "answer": answer, "missing": missing}
        options.emit(config.plain(data))
        return 1 if missing else 0
    for sentence in answer:
        click.echo(sentence)
    _print_missing(missing)
    _note(f"in {finished.folder}: report.html, report.md, results.json")
    if missing:
        _note(f"then: imatrix-lab study resume {finished.folder}")
    return 1 if missing else 0


def _print_missing(missing: Sequence[Missing]) -> None:
    for step in missing:
        words = f"missing: {step.step}: {step.why}"
        words += f"; skipped because of it: {some(step.left_out)}" if step.left_out else ""
        _note(words + (f"\n  try: {step.fix}" if step.fix else ""))


def _detail(step: dict[str, Any]) -> str:
    if "why" in step:
        return str(step["why"]) + (f"; try: {step['fix']}" if step["fix"] else "")
    if step["state"] != "running":
        return ""
    words = [f"on {step['machine']}"] if step.get("machine") else []
    if "task" not in step:
        return ", ".join(words)
    words.append(f"{step['task']}: {100 * step['done'] / (step['total'] or 1):.0f} %")
    if step["unit"] and (step["per_s"] or 0) >= 1:
        words.append(f"{quantity(step['per_s'], step['unit'])}/s")
    if step["left_s"] is not None and not math.isnan(step["left_s"]):
        words.append(f"{duration(step['left_s'])} left")
    return ", ".join(words)


# -- the plan


def show(plan: Plan) -> None:
    """Print steps and what they cost, what can be detected, and warnings."""
    if plan.rows:
        _show_steps(plan)
        table = new_table("this machine", "per second", "measured on")
        table.columns[2].justify = "left"
        for name, speed in plan.rates.items():
            per_s = quantity(speed.per_second, speed.unit)
            table.add_row(escape(name), per_s, speed.stands_on)
        stdout.print(table)
    stdout.print("\nsmallest difference detected with 80 % power")
    table = new_table("between", "min. detectable", "margin", "clusters", "needed", "based on")
    table.columns[5].justify = "left"
    for effect in plan.effects:
        power = effect.power
        table.add_row(
            escape(power.what),
            _value(power.detectable, power),
            "none" if math.isnan(power.margin) else _value(power.margin, power),
            f"{effect.clusters:,}",
            f"{effect.clusters_needed:,}" if effect.clusters_needed else "",
            power.assumed,
        )
    stdout.print(table)
    for warning in plan.warnings:
        _note(f"warning: {warning}")


def _show_steps(plan: Plan) -> None:
    """Print the steps and the sums; a time with a question mark is not measured."""
    rows = [row for row in plan.rows if row.kind != "tidy"]
    table = new_table("step", "state", "time", "disk", "memory")
    for row in rows:
        time = "" if row.is_done else duration(row.seconds)
        table.add_row(
            escape(row.what),
            "cached" if row.is_done else "to do",
            time if row.stands_on or not time else f"{time}?",
            size(row.disk_bytes) if row.disk_bytes else "",
            size(row.memory_bytes) if row.memory_bytes and not row.is_done else "",
        )
    stdout.print(table)
    n_done = sum(row.is_done for row in rows)
    stdout.print(
        f"\n{plan.name}: {len(rows)} steps, {n_done} cached; about {duration(plan.seconds)} on all"
        f" cores (? is assumed); disk: {size(plan.disk_peak_bytes)} at most,"
        f" {size(plan.disk_final_bytes)} at the end, {size(plan.disk_free_bytes)} free; memory:"
        f" {size(plan.memory_bytes)} of {size(plan.memory_limit_bytes)}\n"
    )


def _show_placement(placement: Placement) -> None:
    """Print what each machine would do, and which steps decide how long it takes."""
    table = new_table("machine", "steps", "works for")
    for name, seconds in placement.busy_s().items():
        n_steps = sum(step.machine == name for step in placement.steps)
        table.add_row(escape(name), f"{n_steps}", duration(seconds))
    stdout.print(table)
    fetched = size(placement.fetched_bytes())
    stdout.print(
        f"\nabout {duration(placement.seconds)} on these machines, which read {fetched} of what"
        " others of them made; it takes that long because of, one after the other:"
    )
    table = new_table("step", "machine", "from", "to", n_text=2)
    for step in placement.chain():
        begins, ends = duration(step.begins_s), duration(step.ends_s)
        table.add_row(escape(step.what), escape(step.machine), begins, ends)
    stdout.print(table)


def _value(value: float, power: Power) -> str:
    return "none" if math.isinf(value) else f"{value:.2g} {power.unit}"
