"""``imatrix-lab task``: list and run benchmarks, and show the results."""

import math
import os
import re
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.lazy import LazyGroup
from imatrix_lab.cli.score import RUNS
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.tasks import definition
from imatrix_lab.tasks.definition import VARIANTS, Definition
from imatrix_lab.types import TaskRequest

RUN = options.PathType(exists=True, dir_okay=False)
API_KEY = "IMATRIX_LAB_API_KEY"
ENDPOINT = click.option("--endpoint", metavar="URL", default="", help="OpenAI-compatible server"
                        f" to ask instead; its key is read from ${API_KEY}.")  # fmt: skip
SHOWN_MAX = 600
"""Characters of a prompt or an answer that `task flips` prints; --json has all."""
LIMIT = click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N items.")
DATA = click.option("--data", type=options.PathType(),
                    help="A file or folder of the benchmark, in place of the Hub.")  # fmt: skip
LEGEND = (
    "scorer: choice is by likelihood, on the GGUF itself; for the others the model writes",
    "items: of one language, where all have as many; unique: without repeats, where known",
    "not pinned: the newest version is used if it has as many items; records name its commit",
)
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
    """List the tasks with languages, items, licences, and what each needs.

    \b
    Example:
      imatrix-lab task list
    """
    from imatrix_lab.tasks.locale import load_locales

    tasks = definition.load_all()
    facts = {name: _facts(task) for name, task in tasks.items()}
    if as_json:
        return options.emit(facts)
    columns = ("task", "scorer", "languages", "licence", "needs", "items", "unique")
    table = new_table(*columns, n_text=5)
    for name, task in tasks.items():
        texts = (name, task.scorer, " ".join(task.languages), task.licence, facts[name]["needs"])
        table.add_row(*map(escape, texts), str(task.items or ""), str(task.unique or ""))
    stdout.print(table)
    judges = " ".join(code for code, locale in load_locales().items() if locale.judge.grade)
    notes = [f"{name}: {task.note}" for name, task in tasks.items() if task.note]
    for line in (*notes, *LEGEND, f"task judge has instructions in {judges}"):
        stderr.print(line, style="dim", markup=False, soft_wrap=True)


def _facts(task: Definition) -> dict[str, Any]:
    source = task.source
    needs = f"hub {source.hub}" + ("" if source.is_pinned() else ", not pinned")
    names = ("title", "items", "unique", "licence", "citation", "note")
    facts = {name: getattr(task, name) for name in names}
    return {**facts, "languages": list(task.languages), "hub": source.hub,
            "revision": source.revision, "needs": needs if source.hub else "--data"}  # fmt: skip


@task.command("run", cls=options.Spread)
@click.argument("tasks", nargs=-1, required=True, metavar="TASK…")
@click.option("--langs", default="", metavar="CODES", help="e.g. en,nb. [default: all it has]")
@click.option("--quant", "quants", multiple=True, metavar="FILE…",
              help="Quants; with --endpoint, the server's model name. [default: demo]")  # fmt: skip
@DATA
@LIMIT
@click.option("--variant", type=click.Choice(VARIANTS),
              help="How options are scored by likelihood. [default: the task's]")  # fmt: skip
@click.option("--shots", type=click.IntRange(0), help="Solved examples. [default: the task's]")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N",
              help="Tokens of an answer, without thoughts. [default: the task's]")  # fmt: skip
@click.option("--thinking/--no-thinking", default=None,
              help="Let models that can think do so first. [default: the task's]")  # fmt: skip
@click.option("--keep-text", is_flag=True, help="Keep prompts and outputs in the records.")
@ENDPOINT
@click.option("--out", type=options.PathType(), default=Path("task-runs"),
              show_default=True, help="Folder for the records.")  # fmt: skip
@options.BACKEND
@click.option("--ctx", "n_ctx", type=click.IntRange(32, 1 << 20),
              help="Tokens of prompt and answer. [default: 4096, or the model's]")  # fmt: skip
@click.option("--parallel", type=click.IntRange(1, 256), default=16, show_default=True,
              help="Answers at a time.")  # fmt: skip
@options.THREADS
@options.OFFLOAD
@options.JSON
def task_run(langs: str, as_json: bool, **rest: Any) -> None:
    """Run benchmarks on quants; every answer is kept, and a stopped run continues.

    TASK is a name from `task list`, or a TOML file of your own.

    \b
    Example:
      imatrix-lab task run mixeval belebele --langs en,nb --quant A.gguf B.gguf --limit 500
    """
    from imatrix_lab.tasks.run import run_quants

    if rest["endpoint"] and not rest["quants"]:
        raise click.UsageError("missing --quant: the server's name for its model")
    rest["quants"] = rest["quants"] or ("demo",)
    session = options.session()
    words = langs.replace(",", " ").split()
    codes = tuple(dict.fromkeys(options.language(word, session.progress) for word in words))
    rest |= {"languages": codes, "api_key": os.environ.get(API_KEY, "")}
    request = TaskRequest(compute=options.compute_options(rest), **rest)
    files = run_quants(request, session)
    if as_json:
        return options.emit([str(file) for file in files])
    for file in files:
        options.echo(file)


@task.command("show")
@RUNS
@options.JSON
def task_show(runs: tuple[Path, ...], as_json: bool) -> None:
    """Show the score of each quant on each task, with 95 % CIs by group of questions.

    \b
    Example:
      imatrix-lab task show task-runs
    """
    from imatrix_lab.tasks import summary

    scores = summary.scores(runs)
    if as_json:
        return options.emit(scores)
    columns = ("task", "language", "quant", "score", "95 % CI", "items", "clusters",
               "unread", "cut", "ties", "failed")  # fmt: skip
    table = new_table(*columns, n_text=3)
    for s in scores:
        failed = sum(s.failed.values())
        counts = (s.n_items, s.n_clusters, s.n_unparsed, s.n_cut, s.n_ties, failed)
        mean, low, high = s.score.estimate, s.score.low, s.score.high
        interval = "none: one cluster" if math.isnan(low) else f"{low:.2%} … {high:.2%}"
        cells = ("none", "none") if math.isnan(mean) else (f"{mean:.2%}", interval)
        names = map(escape, (s.task, s.language, s.quant))
        table.add_row(*names, *cells, *(f"{n:,}" for n in counts))
    stdout.print(table)
    for s in scores:
        name = f"{s.task} {s.language} {s.quant}"
        for reason, n in s.failed.items():
            stderr.print(f"{name}: {n:,} failed: {reason}", markup=False)
        if q := s.quality:
            stdout.print(f"{name}: chrF++ {q.chrf:.2f}, BLEU {q.bleu:.2f}", markup=False)
            stderr.print(f"  {q.chrf_signature}\n  {q.bleu_signature}", style="dim", markup=False)
    if any(s.n_unparsed and s.n_cut for s in scores):
        more = "cut off and unread: task run --max-tokens N gives answers and thoughts more room"
        stderr.print(more, style="dim", soft_wrap=True)
    note = "failed items are in no score; unread answers are wrong. Two quants: imatrix-lab compare"
    stderr.print(note, style="dim", soft_wrap=True)


@task.command("flips")
@click.argument("run_a", type=RUN)
@click.argument("run_b", type=RUN)
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, metavar="N",
              help="Print at most N.")  # fmt: skip
@options.JSON
def task_flips(run_a: Path, run_b: Path, limit: int, as_json: bool) -> None:
    """List the items on which two quants differ, with their answers if the records have them.

    \b
    Example:
      imatrix-lab task flips task-runs/mixeval.nb.A.parquet task-runs/mixeval.nb.B.parquet
    """
    from imatrix_lab.tasks import summary

    flips = summary.flips(run_a, run_b)
    if as_json:
        return options.emit(flips)
    for flip in flips.items[:limit]:
        stdout.print(f"{flip.task} {flip.language} {flip.item_id}", style="bold", markup=False)
        if flip.prompt:
            stdout.print(_shown(flip.prompt), markup=False, style="dim", soft_wrap=True)
        a, b = (_shown(text) or "nothing read" for text in (flip.output_a, flip.output_b))
        for line in (f"gold  {_shown(flip.gold)}", f"A {flip.score_a:.2f}  {a}",
                     f"B {flip.score_b:.2f}  {b}"):  # fmt: skip
            stdout.print(f"  {line}", markup=False, soft_wrap=True)
    shown = f"; {limit} are shown" if limit < len(flips.items) else ""
    stderr.print(
        f"{len(flips.items):,} of {flips.n_items:,} items differ: B is better on"
        f" {flips.n_gained:,} and worse on {flips.n_lost:,}{shown}"
    )


def _shown(text: str) -> str:
    """Return a stranger's text for a terminal: not too long, and nothing that steers it."""
    tame = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text.strip())
    if len(tame) <= SHOWN_MAX:
        return tame
    return f"{tame[:SHOWN_MAX]} … ({len(tame) - SHOWN_MAX:,} characters more)"
