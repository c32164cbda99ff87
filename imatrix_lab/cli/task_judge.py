"""``imatrix-lab task judge``: a model grades answers, or chooses between two runs."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imatrix_lab.cli import options
from imatrix_lab.cli.task import API_KEY, ENDPOINT, LIMIT, RUN
from imatrix_lab.cli.terminal import stderr
from imatrix_lab.core.outputs import check_folder
from imatrix_lab.core.session import Session
from imatrix_lab.types import ChatRequest

if TYPE_CHECKING:
    from imatrix_lab.tasks.chat import Chat

MODEL = click.option("--model", required=True, metavar="MODEL",
                     help="A GGUF to serve here; with --endpoint, its model's name.")  # fmt: skip
PARALLEL = click.option("--parallel", type=click.IntRange(1, 256), default=4, show_default=True,
                        help="Requests at a time.")  # fmt: skip
CHAT = options.several([MODEL, ENDPOINT, PARALLEL, options.BACKEND, options.OFFLOAD])


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN]", type=RUN)
@CHAT
@LIMIT
@options.JSON
def judge(runs: tuple[Path, ...], limit: int | None, as_json: bool, **chat_options: Any) -> None:
    """Let a model grade a run's answers, or say which of two runs answers better.

    The records need their text: task run --keep-text. Every judgement is kept beside them.

    \b
    Example:
      imatrix-lab task judge task-runs/mixeval.nb.A.parquet --model judge.gguf
    """
    from imatrix_lab.tasks.judge import Preferences, free_form, grade, prefer

    if len(runs) > 2:
        raise click.UsageError("give one run to grade, or two to compare")
    session = options.session()
    for run in runs:
        free_form(run)  # what is wrong is told before llama.cpp is built
    check_folder(runs[0].parent)
    with chat_with(chat_options, session) as chat:
        verdict = (
            prefer(*runs, chat, session.progress, limit)
            if len(runs) == 2
            else grade(runs[0], chat, session.progress, limit)
        )
    if as_json:
        return options.emit(verdict)
    if isinstance(verdict, Preferences):
        n_a, n_b, n_ties = verdict.n_a, verdict.n_b, verdict.n_ties
        click.echo(f"A is better {n_a:,} times, B {n_b:,}, neither {n_ties:,}")
        stderr.print("not validated: no votes of people beside it (imatrix-lab preference judge)")
    else:
        undefined = "undefined (both give every item the same verdict)"
        kappa = undefined if math.isnan(verdict.kappa) else f"{verdict.kappa:.3f}"
        means = f"judge {verdict.mean:.2%}, rule {verdict.mean_rule:.2%}"
        click.echo(f"{means}, Cohen's kappa {kappa} on {verdict.n:,} items")
    for reason, n in verdict.failed.items():
        stderr.print(f"{n:,} without a verdict: {reason}", markup=False, soft_wrap=True)
    stderr.print(f"judge {verdict.model}; {verdict.file}", markup=False, soft_wrap=True)
    return None


def chat_with(chat_options: dict[str, Any], session: Session) -> AbstractContextManager[Chat]:
    """Return a chat with the model that the options name."""
    from imatrix_lab.tasks import backends

    compute, api_key = options.compute_options(chat_options), os.environ.get(API_KEY, "")
    request = ChatRequest(**chat_options, compute=compute, api_key=api_key)
    return backends.open_chat(request, session)
