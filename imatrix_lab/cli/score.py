"""Scoring quants, and showing what was scored."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import Terminal, new_table, stderr, stdout
from imatrix_lab.core.outputs import Rules, check_file, replaceable, replacing_equal
from imatrix_lab.core.paths import expanded
from imatrix_lab.types import ScoreRequest

if TYPE_CHECKING:
    from imatrix_lab.records.summary import Summary
    from imatrix_lab.stats.clustered import Interval


class _Text(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``nb=heldout.jsonl``, a file, or a language."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Path | None]:
        if isinstance(value, tuple):
            return value
        path = expanded(value)
        if path.is_file():
            return path.stem, path
        label, equals, file = str(value).partition("=")
        if equals and not (label and file):
            self.fail(f"{value!r} is not NAME=FILE")
        return label, expanded(file) if equals else None


@click.group()
def score() -> None:
    """Measure how far quants diverge from the full model, token by token."""


@score.command("run", cls=options.Spread)
@click.option(
    "--reference", required=True, metavar="MODEL", help="The full model: demo, a GGUF file, or hf:…"
)
@click.option(
    "--quant", "quants", multiple=True, required=True, metavar="FILE…", help="Its quants."
)
@click.option(
    "--text", "texts", multiple=True, required=True, type=_Text(), metavar="NAME=FILE…",
    help="Held-out text: rows (a document each: .jsonl, .json, .csv, .parquet), plain text (one"
    " document), or a language alone.",
)  # fmt: skip
@options.FIELD
@click.option(
    "--protocol", type=click.Choice(["document", "llamacpp"]), default="document",
    show_default=True, help="document: every token once, within its document. llamacpp: like"
    " llama-perplexity, to compare with published numbers.",
)  # fmt: skip
@click.option("--ctx", "n_ctx", type=click.IntRange(32, 1 << 20),
              help="Tokens in a window. [default: 1024; llamacpp: 512]")  # fmt: skip
@click.option("--overlap", type=click.IntRange(1),
              help="Context repeated in a document's later windows. [default: ctx/4]")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Score only the first N documents.")
@click.option("--document-tokens", type=click.IntRange(1),
              help="Score only the first N tokens of each document.")  # fmt: skip
@click.option(
    "--base-logits", type=click.Choice(["auto", "live", "cached"]), default="auto",
    show_default=True, help="live: full model and up to 8 quants in memory together. cached: one"
    " at a time, full model's logits on disk; KLD is then a lower bound. auto: live if they fit.",
)  # fmt: skip
@click.option("--rest-share", type=click.FloatRange(1e-6, 0.5), default=0.01, hidden=True)
@click.option("--out", type=options.PathType(), default=Path("scores"), show_default=True,
              help="Folder for the records.")  # fmt: skip
@options.BACKEND
@click.option("--threads", type=click.IntRange(1, 1024), help="[default: all cores]")
@click.option("--rows", "n_rows", type=click.IntRange(32, 1 << 16), hidden=True)
@options.OFFLOAD
@options.JSON
def score_run(as_json: bool, **rest: Any) -> None:
    """Score quants token by token against their full model, on held-out text.

    \b
    Example:
      imatrix-lab score run --reference model-f16.gguf --quant nb-Q4_K_M.gguf en-Q4_K_M.gguf
          --text nb=heldout.jsonl ml
    """  # fmt: skip
    from imatrix_lab.pipeline import score

    session, texts = options.session(), rest.pop("texts")
    rest["texts"] = tuple(
        (label if path else options.language(label, session.progress), path)
        for label, path in texts
    )
    request = ScoreRequest(compute=options.compute_options(rest), **rest)
    files = score.score(request, session)
    if as_json:
        return options.emit(files)
    options.echo(*files)


RUN = options.PathType(exists=True)
RUNS = click.argument("runs", nargs=-1, required=True, metavar="RUN…", type=RUN)


@score.command("show")
@RUNS
@options.JSON
def score_show(runs: tuple[Path, ...], as_json: bool) -> None:
    """Perplexity and divergence of each quant on each text, with intervals by document.

    \b
    Example:
      imatrix-lab score show scores
    """
    from imatrix_lab.records.summary import summaries

    quants = summaries(runs)
    if as_json:
        return options.emit(quants)
    groups: dict[str, list[Summary]] = {}
    for quant in quants:
        groups.setdefault(quant.instrument(), []).append(quant)
    for group in groups.values():
        _print_text(group)
    stderr.print(
        "95 % intervals, clustered by document (llamacpp: by window). They may overlap although two"
        " quants differ clearly: imatrix-lab compare pairs them.",
        style="dim",
    )


_MEASURES = (
    ("perplexity", "ppl", ".3f"),
    ("KLD mean, nats", "kld_mean", ".4f"),
    ("KLD median", "kld_median", ".4f"),
    ("KLD 99 %", "kld_q99", ".3f"),
    ("KLD 99.9 %", "kld_q999", ".3f"),
    ("same top token", "same_top", ".2%"),
    ("RMS Δp", "rms_delta_p", ".2%"),
    ("bits per byte", "bits_per_byte", ".4f"),
)


def _print_text(quants: list[Summary]) -> None:
    """Print one text's table: the quants under each measure, which fits 80 columns."""
    first = quants[0]
    protocol, tools = first.signature["protocol"], first.signature["toolchain"]
    stderr.print(
        f"{first.text}: {first.n_tokens:,} tokens in {first.n_documents} clusters; protocol"
        f" {protocol['name']}, windows of {protocol['n_ctx']}; KLD {first.divergence};"
        f" llama.cpp {tools['commit']} on {tools['backend']}; metrics"
        f" {first.signature['metrics_version']}",
        markup=False,
    )
    table = _table("text", "measure", "quant")
    for name, field, form in _MEASURES:
        rows = [("(original)", first.ppl_reference)] if field == "ppl" else []
        rows += [(quant.quant, getattr(quant, field)) for quant in quants]
        for i, (label, interval) in enumerate(rows):
            text = escape(first.text) if field == "ppl" and not i else ""
            table.add_row(text, "" if i else name, escape(label), *_cells(interval, form))
    stdout.print(table)
    for quant in quants:
        if n := quant.n_nonfinite:
            stderr.print(f"{quant.quant}: {n:,} tokens without a finite score, left out")


def _table(*names: str) -> Table:
    """Return a table of some columns, an estimate and its interval."""
    table = new_table(*names, "", "95 % interval", n_text=len(names))
    for column in table.columns:
        column.no_wrap = column.header != "quant"
    table.columns[-1].justify = "left"
    return table


def _cells(interval: Interval, form: str) -> tuple[str, str]:
    bounds = f"{interval.low:{form}} … {interval.high:{form}}"
    no_bounds = math.isnan(interval.low)
    return f"{interval.estimate:{form}}", "none: one cluster" if no_bounds else bounds


@score.command("agree")
@click.argument("run_a", type=RUN)
@click.argument("run_b", type=RUN)
@options.JSON
def score_agree(run_a: Path, run_b: Path, as_json: bool) -> None:
    """The noise between two backends or builds, next to the effect of quantization.

    \b
    Example:
      imatrix-lab score agree scores-cpu scores-cuda
    """
    from imatrix_lab.records import summary

    rows, fields = summary.agree(run_a, run_b)
    if as_json:
        return options.emit({"differ_in": fields, "rows": rows})
    table = _table("quant", "", "measure")
    for row in rows:
        names = (escape(f"{row.text} {row.quant}"), row.what)
        for measure, interval, form in (
            ("ln PPL ratio", row.ln_ppl_ratio, "+.5f"), ("RMS Δp", row.rms_delta_p, ".3%"),
            ("same top", row.same_top, ".2%"), ("KLD mean", row.kld_mean, ".4f"),
        ):  # fmt: skip
            if interval:
                table.add_row(*names, measure, *_cells(interval, form))
                names = ("", "")
    stdout.print(table)
    stderr.print("the runs differ in: " + (", ".join(fields) or "nothing"), markup=False)
    stderr.print("an effect smaller than the noise says nothing about the quant", style="dim")


@score.command("export")
@click.argument("run", metavar="RUN", type=options.PathType(exists=True, dir_okay=False))
@click.option("--out", type=options.PathType(), help="The file. [default: stdout]")
@options.FORCE
def score_export(run: Path, out: Path | None, force: bool) -> None:
    """Write the records of one run as CSV.

    \b
    Example:
      imatrix-lab score export scores/nb.demo-nb-Q4_K_M.parquet --out nb.csv
    """
    from imatrix_lab.records import parquet

    if out is None:
        return parquet.export_csv(run, sys.stdout.buffer)
    rules = Rules((run,), force, Terminal())
    check_file(out, rules, replaceable)
    with replacing_equal(out, rules) as temporary, temporary.open("wb") as file:
        parquet.export_csv(run, file)
    options.echo(out)
