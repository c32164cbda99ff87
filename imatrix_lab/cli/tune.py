"""The commands that make things: tune, model, quant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.quantize import print_quants
from imatrix_lab.cli.terminal import stderr, stdout
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import languages
from imatrix_lab.errors import UsageError

if TYPE_CHECKING:
    from imatrix_lab.pipeline import plan
    from imatrix_lab.pipeline.quick_answer import Answer


@click.command()
@click.argument("text", metavar="LANGUAGE", required=False)
@options.TYPES
@options.MODEL
@options.TOKENS
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("quants"),
    show_default=True,
    help="Folder for the finished files.",
)
@options.COMPUTE
@click.option("--parse-special", is_flag=True, help="The text has chat tokens: tokenize them so.")
@click.option("--allow-requantize", is_flag=True, help="Accept a model that is quantized already.")
@click.option(
    "--quick/--no-quick",
    default=None,
    help="Say what the tuning bought, on a few documents. [default: if that is quick]",
)
@click.option(
    "--study",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A study whose comparisons go into the model card.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan: steps, sizes, what is cached.")
@options.JSON
def tune(text: str | None, types: Any, dry_run: bool, as_json: bool, **rest: Any) -> None:
    """Text in LANGUAGE to tuned GGUF files: corpus, imatrix, quants. What `make quant` runs.

    LANGUAGE may be a mixture too (multi10, or nb=0.75,en=0.25), or a folder that `corpus build`
    printed.

    \b
    Example:
      imatrix-lab tune nb --type Q4_K_M --model model-f16.gguf --tokens 65536 --out quants
    """  # fmt: skip

    from imatrix_lab.pipeline import plan, quick
    from imatrix_lab.pipeline import tune as pipeline
    from imatrix_lab.pipeline.quick_answer import as_json as as_plain

    if not text:
        raise UsageError(
            "which language? make quant LANG=nb, or: imatrix-lab tune nb",
            fix="one of:\n"
            + "\n".join(f"    {c:3} {n.name}" for c, n in languages.load_all().items()),
        )
    session = options.session()
    request = options.request(options.language(text, session.progress), types, **rest)
    if dry_run:
        steps = plan.plan(request, session)
        return options.emit(steps) if as_json else _print_plan(steps)
    watch = quick.Watch(session.progress)
    result = pipeline.tune(request, Session(session.store, watch))
    if not as_json:
        print_quants(result.quants, result.files)
    found = quick.answer(request, result, session.store, watch)
    if as_json:
        return options.emit({**vars(result), "quick": as_plain(found) if found else None})
    if found:
        _print_answer(found, request.types[1:])


def _print_plan(steps: list[plan.Step]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "state", "detail"):
        table.add_column(name, overflow="fold")
    for step in steps:
        table.add_row(step.name, "cached" if step.cached else "to do", step.detail)
    stdout.print(table)


def _print_answer(found: Answer, other_types: tuple[str, ...]) -> None:

    from imatrix_lab.pipeline.quick_answer import sentence

    stdout.print(sentence(found), markup=False, soft_wrap=True)
    said = f"{', '.join(other_types)} not scored; " if other_types else ""
    stderr.print(f"{said}one text an imatrix: imatrix-lab study run tells more", style="dim")
