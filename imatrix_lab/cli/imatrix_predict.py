"""``imatrix predict``: what quants would lose in each language, before any is run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import stderr, stdout
from imatrix_lab.errors import UsageError

if TYPE_CHECKING:
    from imatrix_lab.pipeline.predict import Prediction, Row, Selection

SCALE = 1e4


class _Imatrix(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``nb=some.gguf``, a file, or ``none``."""

    name = "imatrix"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Path | None]:

        from imatrix_lab.pipeline.predict import NONE

        if isinstance(value, tuple):
            return value
        if value == NONE:
            return NONE, None
        path = Path(value).expanduser()
        name, equals, file = str(value).partition("=")
        if equals and not path.is_file():
            return name, Path(file).expanduser()
        return path.name.partition(".")[0], path


class _Quant(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``nb=some.gguf``."""

    name = "quant"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Path]:
        if isinstance(value, tuple):
            return value
        name, equals, file = str(value).partition("=")
        if not (name and equals and file):
            self.fail(f"{value!r} is not NAME=FILE, with the name of an imatrix or none")
        return name, Path(file).expanduser()


class _Select(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``worst``, or ``nb=2,en=1``."""

    name = "select"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str) or value == "worst":
            return value
        found = {}
        for word in value.replace(",", " ").split():
            name, _, number = word.partition("=")
            try:
                found[name] = float(number)
            except ValueError:
                self.fail(f"{word!r} is not worst, nor LANGUAGE=WEIGHT")
            if not 0 <= found[name] < float("inf"):
                self.fail(f"{word!r}: a weight is not negative")
        if not any(found.values()):
            self.fail("all weights are zero")
        return found


@click.command(cls=options.Spread)
@options.MODEL
@click.option(
    "--imatrix", "imatrices", multiple=True, required=True, type=_Imatrix(),
    metavar="FILE…", help="Importance matrices, NAME=FILE or a file; none for a quant without one."
    " Each is a calibration and, but for none, a language to predict for.",
)  # fmt: skip
@click.option(
    "--type", "types", type=options.Types(), multiple=True, metavar="TYPE…",
    help="Quant types. [default: Q4_K_M, or those of --quant]",
)  # fmt: skip
@click.option(
    "--quant", "quants", multiple=True, type=_Quant(), metavar="NAME=FILE…",
    help="Quants that are there, by the name of their imatrix; the others are made, looked at"
    " and removed.",
)  # fmt: skip
@click.option("--by", type=click.Choice(["role", "layer"]), help="Tables by role or layer too.")
@click.option(
    "--select", type=_Select(), metavar="worst|NAME=WEIGHT,…",
    help="Look for the mixture that loses least: in its worst language, or on weighted average.",
)  # fmt: skip
@options.BACKEND
@click.option("--threads", type=click.IntRange(1), help="[default: the cores there are]")
@options.JSON
def predict(types: Any, by: str | None, as_json: bool, **rest: Any) -> None:
    """Predict what each calibration and type loses in each language, without running a model.

    \b
    Example:
      imatrix-lab imatrix predict --model model-f16.gguf --imatrix nb.gguf en.gguf none
          --type Q4_K_M Q3_K_S
    """  # fmt: skip

    from imatrix_lab.pipeline import predict as forecast
    from imatrix_lab.pipeline.predict import PredictRequest

    kinds = tuple(dict.fromkeys(t for group in types for t in group))
    if not kinds and not rest["quants"]:
        kinds = ("Q4_K_M",)
    if rest["select"] and not kinds:
        raise UsageError("--select makes quants", fix="--type Q4_K_M")
    session = options.session()
    request = PredictRequest(types=kinds, compute=options.compute_options(rest), **rest)
    found = forecast.predict_losses(request, session)
    if as_json:
        return options.emit(_plain(found))
    for kind in dict.fromkeys(r.type for r in found.rows):
        _print_type([r for r in found.rows if r.type == kind], by)
    for selection in found.selections:
        _print_selection(selection)
    stderr.print(
        f"share of the squared output that is lost, x1e-4, mean over"
        f" {len(found.rows[0].losses.tensors)} tensors; outside: {_few(found.outside)}"
        f" ({found.outside_share:.0%} of the weights)",
        style="dim",
        markup=False,
        soft_wrap=True,
    )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "") if names else "nothing"


def _print_type(rows: list[Row], by: str | None) -> None:
    groups: dict[str, list[Any]] = {"": [r.losses.overall() for r in rows]}
    if by:
        found = [r.losses.grouped(by) for r in rows]
        groups |= {key: [f[key] for f in found] for key in found[0]}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(by or rows[0].type, no_wrap=True)
    table.add_column(f"{rows[0].type} made with" if by else "made with", overflow="fold")
    for language in rows[0].losses.languages:
        table.add_column(f"on {language}", justify="right")
    for key, values in groups.items():
        least = [min(column) for column in zip(*values, strict=True)]
        for i, (row, losses) in enumerate(zip(rows, values, strict=True)):
            cells = (
                f"[bold]{SCALE * v:.2f}[/bold]" if v == low else f"{SCALE * v:.2f}"
                for v, low in zip(losses, least, strict=True)
            )
            head = "" if i else key or ("all" if by else "")
            table.add_row(escape(head), escape(row.calibration), *cells)
    stdout.print(table)


def _print_selection(found: Selection) -> None:
    used = [f"{n}={w:g}" for n, w in found.weights.items() if w]
    best = min(found.pure_objective, key=lambda name: found.pure_objective[name])
    head = f"{found.type}: of {found.n_candidates} mixtures the best is {' '.join(used)}"
    stdout.print(head, markup=False)
    if len(used) == 1:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in found.weights:
        table.add_column(f"on {name}", justify="right")
    for name, row in (("predicted", found.predicted), ("requantized", found.recomputed)):
        table.add_row(name, *(f"{SCALE * v:.2f}" for v in row.values()))
    stdout.print(table)
    ours, theirs = found.objective, found.pure_objective[best]
    words = "is better than" if ours < theirs else "is not better than"
    stdout.print(
        f"requantized, it {words} the best single language, {best}:"
        f" {SCALE * ours:.2f} against {SCALE * theirs:.2f}",
        markup=False,
    )
    stdout.print(f"to make its imatrix: {found.command}", markup=False, soft_wrap=True)


def _plain(found: Prediction) -> dict[str, Any]:
    def by_language(row: Row, values: Iterable[float]) -> dict[str, float]:
        return {n: float(v) for n, v in zip(row.losses.languages, values, strict=True)}

    return {
        "rows": [
            {
                "calibration": r.calibration,
                "type": r.type,
                "relative_loss": by_language(r, r.losses.overall()),
                **{
                    by: {k: by_language(r, v) for k, v in r.losses.grouped(by).items()}
                    for by in ("role", "layer")
                },
            }
            for r in found.rows
        ],
        "selections": [vars(s) for s in found.selections],
        "n_tensors": len(found.rows[0].losses.tensors),
        "outside": list(found.outside),
        "outside_share": found.outside_share,
    }
