"""Studies: a recipe in, a report out."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.core import config
from imatrix_lab.core.format import duration, quantity, size

if TYPE_CHECKING:
    from imatrix_lab.report.results import Power
    from imatrix_lab.study.plan.plan import Plan


def show(plan: Plan) -> None:
    """Print steps, what they take, what can be found, and what is doubtful."""
    if plan.rows:
        stdout.print(_steps(plan))
        stdout.print(f"\n{_totals(plan)}\n")
        stdout.print(_rates(plan))
    stdout.print("\nsmallest differences found with 80 % power")
    stdout.print(_effects(plan))
    for warning in plan.warnings:
        stderr.print(f"warning: {warning}", markup=False, soft_wrap=True)


def _steps(plan: Plan) -> Table:
    table = new_table("step", "state", "time", "disk", "memory")
    for row in plan.rows:
        if row.kind == "tidy":
            continue
        time = "" if row.is_done else duration(row.seconds)
        table.add_row(
            escape(row.what),
            "cached" if row.is_done else "to do",
            time if row.stands_on or not time else f"{time}?",
            size(row.disk_bytes) if row.disk_bytes else "",
            size(row.memory_bytes) if row.memory_bytes and not row.is_done else "",
        )
    return table


def _totals(plan: Plan) -> str:
    """Return what all of it takes; a time with a question mark is not measured."""
    rows = [row for row in plan.rows if row.kind != "tidy"]
    done = sum(row.is_done for row in rows)
    return (
        f"{plan.name}: {len(rows)} steps, {done} cached; about {duration(plan.seconds)} on all"
        f" cores (? is assumed); disk {size(plan.disk_peak_bytes)} at most,"
        f" {size(plan.disk_final_bytes)} at the end,"
        f" {size(plan.disk_free_bytes)} free; memory"
        f" {size(plan.memory_bytes)} of {size(plan.memory_limit_bytes)}"
    )


def _rates(plan: Plan) -> Table:
    table = new_table("this machine", "a second", "measured on")
    table.columns[2].justify = "left"
    for name, rate in plan.rates.items():
        table.add_row(escape(name), quantity(rate.per_second, rate.unit), rate.stands_on)
    return table


def _effects(plan: Plan) -> Table:
    table = new_table("between", "difference", "margin", "units", "would decide", "standing on")
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
    return table


def _value(value: float, power: Power) -> str:
    return "none" if math.isinf(value) else f"{value:.2g} {power.unit}"


FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
JOBS = click.option(
    "--jobs", type=click.IntRange(1, 1024), metavar="N",
    help="Steps at a time. [default: the recipe's, or as cores and memory allow]",
)  # fmt: skip


@click.group()
def study() -> None:
    """The whole question in one command: a recipe in, a report out."""


@study.command("run")
@click.argument("recipe")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The study's folder. [default: studies/NAME]"
)
@click.option("--dry-run", is_flag=True, help="Print the plan: what is there, time, disk, power.")
@JOBS
@options.JSON
def run(
    recipe: str, out: Path | None, dry_run: bool, jobs: int | None, as_json: bool
) -> int | None:
    """Run the study of RECIPE, or go on with it; status 1 if steps failed.

    RECIPE is a TOML file, or the name of one that comes with the package (quick-nb).

    \b
    Example:
      imatrix-lab study run recipes/quick-nb.toml
    """
    from imatrix_lab.study import recipe as recipes
    from imatrix_lab.study import run as running

    path = recipes.find(recipe)
    session = options.session()
    if dry_run:
        found = running.plan(path, out, session)
        if as_json:
            options.emit(config.plain(found))
        else:
            show(found)
        return None
    return _print_found(running.begin(path, out, jobs, session), as_json)


@study.command("resume")
@click.argument("folder", required=False, metavar="[DIR]", type=FOLDER)
@JOBS
@options.JSON
def resume(folder: Path | None, jobs: int | None, as_json: bool) -> int:
    """Go on with a study that was stopped, and try again what failed.

    DIR is the study's folder; the newest under studies/ without it.

    \b
    Example:
      imatrix-lab study resume studies/quick-nb
    """
    from imatrix_lab.study import folder as folders
    from imatrix_lab.study import run as running

    found = folders.Folder(folder.absolute()) if folder else folders.newest()
    session = options.session()
    return _print_found(running.resume(found, jobs, session), as_json)


def _print_found(done: Any, as_json: bool) -> int:
    """Print the answer, what is missing and where things lie; return the exit status."""
    if as_json:
        found = {"folder": done.folder, "answer": done.found.answer, "missing": done.found.missing}
        options.emit(config.plain(found))
        return 1 if done.found.missing else 0
    for sentence in done.found.answer:
        click.echo(sentence)
    for missing in done.found.missing:
        said = f"missing: {missing.step}: {missing.why}"
        said += f"; left out for it: {', '.join(missing.left_out)}" if missing.left_out else ""
        said += f"\n  try: {missing.fix}" if missing.fix else ""
        stderr.print(said, markup=False, soft_wrap=True)
    stderr.print(f"in {done.folder}: report.html, report.md, results.json", markup=False,
                 soft_wrap=True)  # fmt: skip
    if done.found.missing:
        stderr.print(f"then: imatrix-lab study resume {done.folder}", markup=False, soft_wrap=True)
    return 1 if done.found.missing else 0


@study.command("status")
@click.argument("folder", required=False, metavar="[DIR]", type=FOLDER)
@options.JSON
def status(folder: Path | None, as_json: bool) -> None:
    """What is done, what is running and how long it takes, what failed and why.

    DIR is the study's folder; the newest under studies/ without it.

    \b
    Example:
      imatrix-lab study status
    """
    from imatrix_lab.study import folder as folders

    found = folders.Folder(folder.absolute()) if folder else folders.newest()
    told = found.now()
    if as_json:
        return options.emit(told)
    counts = Counter(step["state"] for step in told["steps"].values())
    words = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    left = told["left_s"]
    rest = f", about {duration(left)} left" if told["state"] == "running" and left else ""
    click.echo(f"{found.path.name}: {told['state']}, {100 * told['share']:.0f} %{rest}; {words}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "state", "detail"):
        table.add_column(name, overflow="fold")
    for step in told["steps"].values():
        if step["state"] not in ("waiting", "done"):
            table.add_row(escape(step["what"]), step["state"], escape(_detail(step)))
    if table.row_count:
        stdout.print(table)
    if told["state"] in ("stopped", "failed"):
        stderr.print(f"go on: imatrix-lab study resume {found.path}", markup=False, soft_wrap=True)


def _detail(step: dict[str, Any]) -> str:
    """Return how far a step is, or why it is not."""
    if "why" in step:
        return str(step["why"]) + (f"; try: {step['fix']}" if step["fix"] else "")
    if "task" not in step or step["state"] != "running":
        return ""
    said = [f"{step['task']}: {100 * step['done'] / (step['total'] or 1):.0f} %"]
    if step["unit"] and (step["per_s"] or 0) >= 1:
        said.append(f"{quantity(step['per_s'], step['unit'])}/s")
    if step["left_s"] is not None and not math.isnan(step["left_s"]):
        said.append(f"{duration(step['left_s'])} left")
    return ", ".join(said)
