"""``task judge`` and ``task translate``: what a model is asked in words."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from imatrix_lab import toolchain
from imatrix_lab.cli import options
from imatrix_lab.cli.tasks import API_KEY, DATA, ENDPOINT, GPU_LAYERS, LIMIT, RUN
from imatrix_lab.cli.terminal import Terminal, stderr
from imatrix_lab.records import ChatRequest
from imatrix_lab.tasking import answerers
from imatrix_lab.tasking import judge as judging
from imatrix_lab.tasking import translate as translating
from imatrix_lab.tasks import definition as definitions
from imatrix_lab.tasks.chat import Chat

MODEL = click.option(
    "--model", required=True, metavar="MODEL",
    help="A GGUF to serve here; with --endpoint, what that calls its model.",
)  # fmt: skip
PARALLEL = click.option(
    "--parallel", type=click.IntRange(1, 256), default=4, show_default=True,
    help="Requests at a time.",
)  # fmt: skip
ASKED = options.several([MODEL, ENDPOINT, PARALLEL, options.BACKEND, GPU_LAYERS])


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN]", type=RUN)
@ASKED
@LIMIT
@options.JSON
def judge(runs: tuple[Path, ...], limit: int | None, as_json: bool, **asked: Any) -> None:
    """Let a model grade a run's answers, or say which of two runs answers better.

    The records need their text: task run --keep-text. Every judgement is kept beside them.

    \b
    Example:
      imatrix-lab task judge task-runs/mixeval.nb.A.parquet --model judge.gguf
    """
    if len(runs) > 2:
        raise click.UsageError("one run is graded, two are compared")
    terminal = Terminal()
    with _chat(asked, terminal) as chat:
        found = (
            judging.prefer(*runs, chat, terminal, limit)
            if len(runs) == 2
            else judging.grade(runs[0], chat, terminal, limit)
        )
    if as_json:
        return options.emit(found)
    if isinstance(found, judging.Preferences):
        click.echo(f"A is better {found.n_a:,} times, B {found.n_b:,}, neither {found.n_ties:,}")
    else:
        kappa = f"{found.kappa:.3f}"
        if math.isnan(found.kappa):
            kappa = "not defined, as both say the same of every item,"
        click.echo(
            f"judge {found.mean:.2%}, rule {found.mean_rule:.2%}, Cohen's kappa {kappa}"
            f" on {found.n:,} items"
        )
    for why, n in found.failed.items():
        stderr.print(f"{n:,} without a verdict: {why}", markup=False, soft_wrap=True)
    stderr.print(f"judge {found.model}; {found.file}", markup=False, soft_wrap=True)
    return None


@click.command()
@click.argument("name", metavar="TASK")
@click.option("--to", required=True, metavar="CODE", help="The language to translate into.")
@click.option("--from", "source", default="en", show_default=True, metavar="CODE")
@ASKED
@DATA
@LIMIT
@click.option("--out", type=click.Path(path_type=Path), default=Path("translated"),
              show_default=True, help="Folder for the items and the review file.")  # fmt: skip
@options.JSON
def translate(
    name: str, to: str, source: str, as_json: bool, data: Path | None, out: Path,
    limit: int | None, **asked: Any,
) -> None:  # fmt: skip
    """Translate a task by a model; a person reviews what is flagged.

    \b
    Example:
      imatrix-lab task translate mixeval --to nb --endpoint http://host:8080/v1 --model big
    """
    terminal = Terminal()
    one, to = definitions.get(name), options.language(to, terminal)
    with _chat(asked, terminal) as chat:
        found = translating.translate(
            one, source, to, data=data, out=out, limit=limit, chat=chat, progress=terminal
        )
    if as_json:
        return options.emit(found)
    click.echo(found.items)
    left_out = f"{found.n_left_out:,} items left out, not translated; " if found.n_left_out else ""
    stderr.print(
        f"{found.n_texts:,} texts, {found.n_flagged:,} to review in {found.review}; {left_out}"
        f"run it: task run {name} --langs {to} --data {found.items}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    return None


def _chat(asked: dict[str, Any], terminal: Terminal) -> AbstractContextManager[Chat]:
    asked["backend"] = asked["backend"] or toolchain.default_backend()
    request = ChatRequest(**asked, api_key=os.environ.get(API_KEY, ""))
    return answerers.chat(request, options.surroundings()[0], terminal)
