"""``imatrix-lab tune``: a language to tuned GGUF files; what ``make quant`` runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imatrix_lab.cli import options
from imatrix_lab.cli.quantize import print_quants
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import languages
from imatrix_lab.errors import UsageError

if TYPE_CHECKING:
    from imatrix_lab.pipeline import plan
    from imatrix_lab.pipeline.quick_answer import Answer


@click.command()
@click.argument("text", metavar="LANGUAGE", required=False)
@options.TYPES
@options.SIZES
@options.MODEL
@options.TOKENS
@click.option(
    "--out",
    type=options.PathType(),
    default=Path("quants"),
    show_default=True,
    help="Folder for the finished files.",
)
@options.COMPUTE
@click.option("--parse-special", is_flag=True, help="Parse chat tokens in the text.")
@click.option("--awq", is_flag=True, help="Scale channels before rounding (AWQ).")
@click.option(
    "--feedback",
    is_flag=True,
    help="Round with error feedback: less loss in LANGUAGE at the same size, maybe more in others.",
)
@options.QUANTIZED_BY
@click.option("--allow-requantize", is_flag=True, help="Accept a model that is already quantized.")
@click.option(
    "--quick/--no-quick",
    default=None,
    help="Compare the first file with untuned and English-tuned ones on 12 documents."
    " [default: if it takes under 10 min]",
)
@click.option(
    "--study",
    type=options.PathType(),
    metavar="DIR",
    help="Put this study's comparisons into the model card.",
)
@options.FORCE
@click.option(
    "--dry-run", is_flag=True, help="Show the steps, their sizes and what is cached; do nothing."
)
@options.JSON
def tune(text: str | None, types: Any, dry_run: bool, as_json: bool, **rest: Any) -> None:
    """Make tuned GGUF files for LANGUAGE: corpus, imatrix, quants. `make quant` runs this.

    LANGUAGE may also be a mixture (multi10, or nb=0.75,en=0.25) or a folder made by `corpus build`.

    \b
    Example:
      imatrix-lab tune nb --type Q4_K_M --model model-f16.gguf --tokens 65536 --out quants
    """  # fmt: skip
    from imatrix_lab.pipeline import plan, quick
    from imatrix_lab.pipeline.quick_answer import as_json as answer_as_json
    from imatrix_lab.pipeline.tune import tune as tuned

    if not text:
        names = "\n".join(f"    {code:3} {n.name}" for code, n in languages.load_all().items())
        raise UsageError("missing language", fix=f"make quant LANG=nb, or another of:\n{names}")
    session = options.session()
    request = options.request(options.language(text, session.progress), types, **rest)
    if dry_run:
        steps = plan.plan(request, session)
        return options.emit(steps) if as_json else _print_plan(steps)
    watch = quick.Watch(session.progress)
    result = tuned(request, Session(session.store, watch))
    if not as_json:
        print_quants(result.quants, result.files)
    answer = quick.answer(request, result, session.store, watch)
    if as_json:
        return options.emit({**vars(result), "quick": answer_as_json(answer) if answer else None})
    if answer:
        _print_answer(answer, request.types[1:])


def _print_plan(steps: list[plan.Step]) -> None:
    table = new_table("step", "state", "detail", n_text=3)
    for step in steps:
        table.add_row(step.name, "cached" if step.cached else "to do", step.detail)
    stdout.print(table)


def _print_answer(answer: Answer, other_types: tuple[str, ...]) -> None:
    from imatrix_lab.pipeline.quick_answer import explanation, rows

    for line in (*rows(answer), explanation(answer)):
        stdout.print(line, markup=False, soft_wrap=True)
    not_scored = f"{', '.join(other_types)} not compared; " if other_types else ""
    stderr.print(
        f"{not_scored}one calibration text each: imatrix-lab study run tells more", style="dim"
    )
