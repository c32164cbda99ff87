"""``imatrix predict``: what quants lose in each language, before any is run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.core.paths import expanded
from imatrix_lab.errors import UsageError

if TYPE_CHECKING:
    from imatrix_lab.pipeline.predict import BestMixture, Predictions, QuantLosses

SCALE = 1e4


def _named_file(word: str) -> tuple[str, Path | None]:
    """Return name and file of ``nb=some.gguf``, a file, or ``none``."""
    from imatrix_lab.pipeline.predict import NONE

    if word == NONE:
        return NONE, None
    name, equals, file = word.partition("=")
    if equals and not expanded(word).is_file():
        return name, options.imatrix_file(file, options.session())
    path = options.imatrix_file(word, options.session())
    return path.name.partition(".")[0], path


def _quant(word: str) -> tuple[str, Path]:
    name, _, file = word.partition("=")
    if not (name and file):
        raise click.BadParameter(f"{word!r} is not NAME=FILE, with the name of an imatrix or none")
    return name, expanded(file)


def _select(text: str) -> str | dict[str, float]:
    """Return ``worst``, or the weights of ``nb=2,en=1``."""
    if text == "worst":
        return text
    weights = {}
    for word in text.replace(",", " ").split():
        name, _, number = word.partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise click.BadParameter(f"{word!r} is neither worst nor LANGUAGE=WEIGHT") from None
        if not 0 <= weights[name] < float("inf"):
            raise click.BadParameter(f"{word!r}: the weight must not be negative")
    if not any(weights.values()):
        raise click.BadParameter("all weights are zero")
    return weights


@click.command(cls=options.Spread)
@options.MODEL
@click.option(
    "--imatrix", "imatrices", multiple=True, required=True, type=_named_file, metavar="FILE…",
    help="Importance matrices, NAME=FILE or a file: each is a calibration and a language to"
    " predict for. none: a quant without one.",
)  # fmt: skip
@click.option("--type", "types", type=options.Types(), multiple=True, metavar="TYPE…",
              help="Quant types. [default: Q4_K_M, or those of --quant]")  # fmt: skip
@click.option("--quant", "quants", multiple=True, type=_quant, metavar="NAME=FILE…",
              help="Quants to use, by the name of their imatrix; others are made.")  # fmt: skip
@click.option("--by", type=click.Choice(["role", "layer"]), help="Also print by role or layer.")
@click.option("--select", type=_select, metavar="worst|NAME=WEIGHT,…", help="Find the mixture that"
              " loses least: in its worst language, or on weighted average.")  # fmt: skip
@options.BACKEND
@options.THREADS
@options.JSON
def predict(types: Any, by: str | None, as_json: bool, **rest: Any) -> None:
    """Predict what each calibration and type loses in each language, without running a model.

    \b
    Example:
      imatrix-lab imatrix predict --model model-f16.gguf --imatrix nb.gguf en.gguf none
          --type Q4_K_M Q3_K_S
    """  # fmt: skip
    from imatrix_lab.pipeline.predict import PredictRequest, predict_losses

    quant_types = tuple(dict.fromkeys(t for group in types for t in group))
    if not quant_types and not rest["quants"]:
        quant_types = ("Q4_K_M",)
    if rest["select"] and not quant_types:
        raise UsageError("--select makes quants and needs their type", fix="--type Q4_K_M")
    session = options.session()
    request = PredictRequest(types=quant_types, compute=options.compute_options(rest), **rest)
    predictions = predict_losses(request, session)
    if as_json:
        return options.emit(_as_json(predictions))
    for quant_type in dict.fromkeys(r.type for r in predictions.rows):
        _print_type([r for r in predictions.rows if r.type == quant_type], by)
    for mixture in predictions.selections:
        _print_mixture(mixture)
    stderr.print(_note(predictions), style="dim", markup=False, soft_wrap=True)


def _note(predictions: Predictions) -> str:
    """Return what the numbers are, from what, and what they leave out."""
    names, basis = predictions.outside, predictions.basis
    outside = ", ".join(names[:3]) + (" …" if len(names) > 3 else "") if names else "nothing"
    sources = {
        "all of E[x xᵀ] (exact)": basis.exact,
        "E[x] and blocks of E[x xᵀ]": basis.blocks,
        "E[x²] alone": basis.squares,
    }
    used = [f"{n} from {source}" for source, n in sources.items() if n]
    return (
        f"share of the squared output that is lost, x1e-4, mean over"
        f" {len(predictions.rows[0].losses.tensors)} tensors: {', '.join(used)};"
        f" not covered: {outside} ({predictions.outside_share:.0%} of the weights)"
    )


def _print_type(rows: list[QuantLosses], by: str | None) -> None:
    groups: dict[str, list[Any]] = {"all" if by else "": [r.losses.overall() for r in rows]}
    if by:
        grouped = [r.losses.grouped(by) for r in rows]
        groups |= {key: [losses[key] for losses in grouped] for key in grouped[0]}
    languages = [f"on {language}" for language in rows[0].losses.languages]
    made_with = f"{rows[0].type} made with" if by else "made with"
    table = new_table(by or rows[0].type, made_with, *languages, n_text=2)
    for key, values in groups.items():
        least = [min(column) for column in zip(*values, strict=True)]
        for i, (row, losses) in enumerate(zip(rows, values, strict=True)):
            cells = (
                f"[bold]{SCALE * v:.2f}[/bold]" if v == low else f"{SCALE * v:.2f}"
                for v, low in zip(losses, least, strict=True)
            )
            table.add_row("" if i else escape(key), escape(row.calibration), *cells)
    stdout.print(table)


def _print_mixture(mixture: BestMixture) -> None:
    used = [f"{n}={w:g}" for n, w in mixture.weights.items() if w]
    head = f"{mixture.type}: best of {mixture.n_candidates} mixtures: {' '.join(used)}"
    stdout.print(head, markup=False)
    if len(used) == 1:
        return
    table = new_table("", *(f"on {name}" for name in mixture.weights))
    for name, losses in (("predicted", mixture.predicted), ("requantized", mixture.recomputed)):
        table.add_row(name, *(f"{SCALE * v:.2f}" for v in losses.values()))
    stdout.print(table)
    best, least = min(mixture.pure_objective.items(), key=lambda item: item[1])
    verdict = "better than" if mixture.objective < least else "not better than"
    losses_text = f"{SCALE * mixture.objective:.2f} against {SCALE * least:.2f}"
    head = f"requantized, it is {verdict} the best single language, {best}: {losses_text}"
    stdout.print(head, markup=False)
    stdout.print(f"to make its imatrix: {mixture.command}", markup=False, soft_wrap=True)


def _as_json(predictions: Predictions) -> dict[str, Any]:
    languages = predictions.rows[0].losses.languages

    def by_language(values: Iterable[float]) -> dict[str, float]:
        return {n: float(v) for n, v in zip(languages, values, strict=True)}

    rows = []
    for row in predictions.rows:
        overall = by_language(row.losses.overall())
        cells = {"calibration": row.calibration, "type": row.type, "relative_loss": overall}
        for by in ("role", "layer"):
            cells[by] = {k: by_language(v) for k, v in row.losses.grouped(by).items()}
        rows.append(cells)
    return {
        "rows": rows,
        "selections": [vars(mixture) for mixture in predictions.selections],
        "n_tensors": len(predictions.rows[0].losses.tensors),
        "basis": vars(predictions.basis),
        "outside": list(predictions.outside),
        "outside_share": predictions.outside_share,
    }
