"""Benchmarks on quants: listing and running them, and reading what came of it."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.lazy import LazyGroup
from imatrix_lab.cli.score import RUNS
from imatrix_lab.cli.terminal import stderr, stdout
from imatrix_lab.tasks import definition as definitions
from imatrix_lab.tasks.definition import VARIANTS, Definition
from imatrix_lab.types import TaskRequest

if TYPE_CHECKING:
    from imatrix_lab.tasks import summary

RUN = click.Path(path_type=Path, exists=True, dir_okay=False)
API_KEY = "IMATRIX_LAB_API_KEY"
ENDPOINT = click.option(
    "--endpoint", metavar="URL", default="",
    help=f"OpenAI-compatible server to ask instead; its key is read from ${API_KEY}.",
)  # fmt: skip
GPU_LAYERS = click.option("-ngl", "--gpu-layers", type=click.IntRange(0), help="Layers on the GPU.")
SHOWN_MAX = 600
"""Characters of a prompt or an answer that `task flips` prints; --json has all."""
LIMIT = click.option("--limit", type=click.IntRange(1), help="Only so many items.")
DATA = click.option(
    "--data", type=click.Path(path_type=Path),
    help="A file, or a folder of the benchmark's files, in place of the Hub.",
)  # fmt: skip


MORE = {
    "judge": ("task_judge", "Let a model grade answers, or choose between two runs."),
    "translate": ("task_translate", "Translate a task with a model."),
}


@click.group(cls=LazyGroup, lazy=MORE)
def task() -> None:
    """Benchmarks: does a quant still know things, and still answer in its language?"""


@task.command("list")
@options.JSON
def task_list(as_json: bool) -> None:
    """Tasks, their languages, items and licences, and what each needs.

    \b
    Example:
      imatrix-lab task list
    """

    from imatrix_lab.tasks import locale as speeches

    found = definitions.load_all()
    if as_json:
        return options.emit({name: _facts(one) for name, one in found.items()})
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "scorer", "items", "unique", "languages", "licence", "needs"):
        is_number = name in ("items", "unique")
        table.add_column(name, overflow="fold", justify="right" if is_number else "left")
    for name, one in found.items():
        facts = _facts(one)
        table.add_row(
            name, one.scorer, str(one.items or ""), str(one.unique or ""),
            escape(" ".join(facts["languages"])), escape(one.licence), escape(facts["needs"]),
        )  # fmt: skip
    stdout.print(table)
    judges = " ".join(code for code, one in speeches.load_all().items() if one.judge)
    for line in (
        *(f"{name}: {one.note}" for name, one in found.items() if one.note),
        "scorer: choice is by likelihood, on the GGUF itself; for the others the model writes",
        "items: of one language, where all have as many; unique: without repeats, where known",
        "not pinned: the newest version is taken, if it has as many items; records name its commit",
        f"task judge has instructions in {judges}",
    ):
        stderr.print(line, style="dim", markup=False, soft_wrap=True)


def _facts(one: Definition) -> dict[str, Any]:
    source = one.source
    needs = f"hub {source.hub}" + ("" if source.is_pinned() else ", not pinned")
    return {
        "title": one.title, "scorer": one.scorer, "languages": list(one.languages),
        "items": one.items, "unique": one.unique, "licence": one.licence,
        "citation": one.citation, "note": one.note, "hub": source.hub,
        "revision": source.revision, "needs": needs if source.hub else "--data",
    }  # fmt: skip


class _Run(click.Command):
    """Takes several words after ``--quant``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Turn ``--quant A B`` into ``--quant A --quant B``."""
        return super().parse_args(ctx, options.spread(args, ("--quant",)))


@task.command("run", cls=_Run)
@click.argument("tasks", nargs=-1, required=True, metavar="TASK…")
@click.option("--langs", default="", metavar="CODES", help="e.g. en,nb. [default: all it has]")
@click.option(
    "--quant", "quants", multiple=True, metavar="FILE…",
    help="Quants to compare; with --endpoint, what the server calls its model. [default: demo]",
)  # fmt: skip
@DATA
@LIMIT
@click.option(
    "--variant", type=click.Choice(VARIANTS),
    help="How options are scored by likelihood. [default: the task's]",
)  # fmt: skip
@click.option(
    "--shots", type=click.IntRange(0), help="Solved examples first. [default: the task's]"
)
@click.option("--keep-text", is_flag=True, help="Prompts and outputs go into the records.")
@ENDPOINT
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("task-runs"), show_default=True,
    help="Folder for the records.",
)  # fmt: skip
@options.BACKEND
@click.option("--ctx", "n_ctx", type=click.IntRange(32, 1 << 20),
              help="Tokens of prompt and answer. [default: 4096, or the model's]")  # fmt: skip
@click.option("--parallel", type=click.IntRange(1, 256), default=16, show_default=True,
              help="Answers at a time.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), help="[default: the cores there are]")
@GPU_LAYERS
@options.JSON
def task_run(langs: str, as_json: bool, **rest: Any) -> None:
    """Run benchmarks on quants; each answer is kept, and a stopped run goes on where it was.

    TASK is a name from `task list`, or a TOML file of your own.

    \b
    Example:
      imatrix-lab task run mixeval belebele --langs en,nb --quant A.gguf B.gguf --limit 500
    """

    from imatrix_lab.tasks import backends
    from imatrix_lab.tasks import run as running

    if not rest["quants"]:
        if rest["endpoint"]:
            raise click.UsageError("--quant: what does the server call its model?")
        rest["quants"] = ("demo",)
    session = options.session()
    words = langs.replace(",", " ").split()
    codes = tuple(dict.fromkeys(options.language(word, session.progress) for word in words))
    compute = options.compute_options(rest)
    request = TaskRequest(
        languages=codes, compute=compute, api_key=os.environ.get(API_KEY, ""), **rest
    )
    files = running.run(request, backends.open_all(request, session), session.progress)
    if as_json:
        return options.emit([str(f) for f in files])
    for file in files:
        click.echo(file)


@task.command("show")
@RUNS
@options.JSON
def task_show(runs: tuple[Path, ...], as_json: bool) -> None:
    """Scores of each quant on each task, with intervals by group of items.

    \b
    Example:
      imatrix-lab task show task-runs
    """

    from imatrix_lab.tasks import summary

    found = summary.scores(runs)
    if as_json:
        return options.emit(found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "language", "quant"):
        table.add_column(name, overflow="fold")
    for name in ("items", "groups", "score", "95 % interval", "unread", "cut", "ties", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in found:
        table.add_row(
            *map(escape, (s.task, s.language, s.quant)), f"{s.n_items:,}", f"{s.n_clusters:,}",
            _share(s.score.estimate), _range(s), f"{s.n_unparsed:,}", f"{s.n_cut:,}",
            f"{s.n_ties:,}", f"{sum(s.failed.values()):,}",
        )  # fmt: skip
    stdout.print(table)
    for s in found:
        for why, n in s.failed.items():
            stderr.print(f"{s.task} {s.language} {s.quant}: {n:,} failed: {why}", markup=False)
        if q := s.quality:
            stdout.print(f"{s.task} {s.language} {s.quant}: chrF++ {q.chrf:.2f}, BLEU {q.bleu:.2f}",
                         markup=False)  # fmt: skip
            stderr.print(f"  {q.chrf_signature}\n  {q.bleu_signature}", style="dim", markup=False)
    stderr.print(
        "failed items are in no score; unread answers are wrong. Two quants: imatrix-lab compare",
        style="dim", soft_wrap=True,
    )  # fmt: skip


def _share(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.2%}"


def _range(s: summary.Score) -> str:
    if math.isnan(s.score.low):
        return "none: one group" if s.n_clusters else "none"
    return f"{s.score.low:.2%} … {s.score.high:.2%}"


@task.command("flips")
@click.argument("run_a", type=RUN)
@click.argument("run_b", type=RUN)
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True,
              help="So many are listed.")  # fmt: skip
@options.JSON
def task_flips(run_a: Path, run_b: Path, limit: int, as_json: bool) -> None:
    """Items on which two quants differ; with what they wrote, where the records have it.

    \b
    Example:
      imatrix-lab task flips task-runs/mixeval.nb.A.parquet task-runs/mixeval.nb.B.parquet
    """

    from imatrix_lab.tasks import summary

    found = summary.flips(run_a, run_b)
    if as_json:
        return options.emit(found)
    for flip in found.items[:limit]:
        stdout.print(f"{flip.task} {flip.language} {flip.item_id}", style="bold", markup=False)
        if flip.prompt:
            stdout.print(_shown(flip.prompt), markup=False, style="dim", soft_wrap=True)
        stdout.print(f"  gold  {_shown(flip.gold)}", markup=False, soft_wrap=True)
        for name, said, score, output in (
            ("A", flip.a, flip.score_a, flip.output_a),
            ("B", flip.b, flip.score_b, flip.output_b),
        ):
            words = _shown(output or said) or "nothing read"
            stdout.print(f"  {name} {score:.2f}  {words}", markup=False, soft_wrap=True)
    stderr.print(
        f"{len(found.items):,} of {found.n_items:,} items differ: B is better on {found.n_gained:,}"
        f" and worse on {found.n_lost:,}"
        + (f"; {limit} are shown" if limit < len(found.items) else "")
    )


def _shown(text: str) -> str:
    """Return a stranger's text for a terminal: not too long, and nothing that steers it."""
    tame = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text.strip())
    if len(tame) <= SHOWN_MAX:
        return tame
    return f"{tame[:SHOWN_MAX]} … ({len(tame) - SHOWN_MAX:,} characters more)"
