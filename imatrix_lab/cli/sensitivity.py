"""``imatrix-lab sensitivity``: how much a language suffers from errors in each part of a model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import Terminal, new_table, stderr, stdout
from imatrix_lab.core.outputs import Rules, check_file, replaceable

if TYPE_CHECKING:
    from imatrix_lab.quantize.sensitivity import Coefficient, Sensitivity

FILE = options.PathType()


@click.group()
def sensitivity() -> None:
    """Measure how much a language suffers from errors in each part of a model."""


@sensitivity.command("build")
@options.MODEL
@click.option(
    "--text", required=True, metavar="TEXT",
    help="A language or mixture, a folder made by `corpus build`, or a file of text; calibration"
    " text is read, never held-out text.",
)  # fmt: skip
@options.FIELD
@options.TOKENS
@click.option(
    "--imatrix", "imatrix_path", metavar="FILE",
    help="The importance matrix of this text. [default: collected now]",
)  # fmt: skip
@click.option("--out", type=FILE, help="[default: ./LANGUAGE.sensitivity.json]")
@options.COMPUTE
@options.FORCE
@options.JSON
def sensitivity_build(
    model: str, text: str, imatrix_path: str | None, out: Path | None, as_json: bool, **rest: Any
) -> None:
    """Measure sensitivities by probes: one group of tensors coarse at a time; can be continued.

    \b
    Example:
      imatrix-lab sensitivity build --model model-f16.gguf --text nb
    """  # fmt: skip
    from imatrix_lab.pipeline.sensitivity import build
    from imatrix_lab.quantize.sensitivity import read

    session = options.session()
    text = options.language(text, session.progress)
    source = options.imatrix_file(imatrix_path, session) if imatrix_path else None
    request = options.request(text, (), model=model, **rest)
    path = build(request, source, out, session)
    if as_json:
        return options.emit({"file": path, **vars(read(path))})
    _print([read(path)])
    options.echo(path)


@sensitivity.command("show")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FILE)
@click.option(
    "--plot", type=FILE, metavar="[OUT]", is_flag=False, flag_value="sensitivity.svg",
    help="Plot by role and depth to OUT.svg or OUT.png. [without OUT: sensitivity.svg]",
)  # fmt: skip
@options.FORCE
@options.JSON
def sensitivity_show(
    files: tuple[Path, ...], plot: Path | None, force: bool, as_json: bool
) -> None:
    """Show sensitivities by role and depth, languages side by side.

    \b
    Example:
      imatrix-lab sensitivity show nb.sensitivity.json en.sensitivity.json --plot
    """
    from imatrix_lab.quantize import sensitivity

    rules = Rules(files, force, Terminal())
    if plot:
        from imatrix_lab.imatrix.plots import check
        from imatrix_lab.quantize import plots

        check(plot)
        check_file(plot, rules, replaceable)
    measured = [sensitivity.read(path) for path in files]
    if as_json:
        return options.emit(measured)
    if plot:
        plots.draw(plot, measured, rules)
        stderr.print(f"plot: {plot}", markup=False)
    _print(measured)


def _print(measured: list[Sensitivity]) -> None:
    from imatrix_lab.quantize import sensitivity

    columns = [c for s in measured for c in (escape(s.language), "95 % interval")]
    table = new_table("group", "types with a", *columns)
    by_key = [s.flat() for s in measured]
    for group, kind in dict.fromkeys(key for flat in by_key for key in flat):
        cells = [cell for flat in by_key for cell in _cells(flat.get((group, kind)))]
        table.add_row(escape(group), kind, *cells)
    stdout.print(table)
    for s in measured:
        stderr.print(
            f"{s.language}: nats a token for each unit of relative error; {sum(s.tokens):,} tokens"
            f" in {len(s.tokens)} pieces of text; bands of layers count from 0",
            style="dim", markup=False, soft_wrap=True,
        )  # fmt: skip
    for a, b in itertools.pairwise(measured):
        rank = sensitivity.correlation(a, b)
        stderr.print(f"{a.language}, {b.language}: rank correlation {rank:.2f}", markup=False)


def _cells(coefficient: Coefficient | None) -> tuple[str, str]:
    if coefficient is None:
        return "", ""
    low, high = coefficient.ci95_low, coefficient.ci95_high
    ends = "" if low is None or high is None else f"{low:.3g} … {high:.3g}"
    return f"{coefficient.kld_nats_per_error:.3g}", ends
