"""``task judge`` and ``task translate``: what a model is asked in words."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imatrix_lab.cli import options
from imatrix_lab.cli.task import API_KEY, ENDPOINT, GPU_LAYERS, LIMIT, RUN
from imatrix_lab.cli.terminal import Terminal, stderr
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.types import ChatRequest

if TYPE_CHECKING:
    from imatrix_lab.tasks.chat import Chat

MODEL = click.option(
    "--model", required=True, metavar="MODEL",
    help="A GGUF to serve here; with --endpoint, what that calls its model.",
)  # fmt: skip
PARALLEL = click.option(
    "--parallel", type=click.IntRange(1, 256), default=4, show_default=True,
    help="Requests at a time.",
)  # fmt: skip
CHAT = options.several([MODEL, ENDPOINT, PARALLEL, options.BACKEND, GPU_LAYERS])


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN]", type=RUN)
@CHAT
@LIMIT
@options.JSON
def judge(runs: tuple[Path, ...], limit: int | None, as_json: bool, **asked: Any) -> None:
    """Let a model grade a run's answers, or say which of two runs answers better.

    The records need their text: task run --keep-text. Every judgement is kept beside them.

    \b
    Example:
      imatrix-lab task judge task-runs/mixeval.nb.A.parquet --model judge.gguf
    """

    from imatrix_lab.tasks import judge as judging

    if len(runs) > 2:
        raise click.UsageError("one run is graded, two are compared")
    terminal = Terminal()
    with chat_with(asked, terminal) as chat:
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


def chat_with(asked: dict[str, Any], terminal: Terminal) -> AbstractContextManager[Chat]:
    """Return a chat with the model that the options name."""
    from imatrix_lab.tasks import backends

    compute = options.compute_options(asked)
    request = ChatRequest(**asked, compute=compute, api_key=os.environ.get(API_KEY, ""))
    return backends.open_chat(request, Session(Store(), terminal))
