"""Scoring quants, and showing what was scored."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import stderr, stdout
from imatrix_lab.core.files import write_whole
from imatrix_lab.score.windows import ROWS_MIN
from imatrix_lab.types import ScoreRequest

if TYPE_CHECKING:
    from imatrix_lab.records import summary
    from imatrix_lab.stats.clustered import Interval

_SEVERAL = ("--quant", "--text")


class _Run(click.Command):
    """A command that takes several words after some options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Turn ``--quant A B`` into ``--quant A --quant B``."""
        return super().parse_args(ctx, options.spread(args, _SEVERAL))


class _Text(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``nb=heldout.jsonl``, a file, or a language."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Path | None]:
        if isinstance(value, tuple):
            return value
        path = Path(value).expanduser()
        if path.is_file():
            return path.stem, path
        label, equals, file = str(value).partition("=")
        if equals:
            if not (label and file):
                self.fail(f"{value!r} is not NAME=FILE")
            return label, Path(file).expanduser()
        return value, None


@click.group()
def score() -> None:
    """Measure how far quants diverge from the full model, token by token."""


@score.command("run", cls=_Run)
@click.option(
    "--reference", required=True, metavar="MODEL", help="The full model: demo, a GGUF file, or hf:…"
)
@click.option(
    "--quant",
    "quants",
    multiple=True,
    required=True,
    metavar="FILE…",
    help="Quants of it; one or several.",
)
@click.option(
    "--text", "texts", multiple=True, required=True, type=_Text(), metavar="NAME=FILE…",
    help="Held-out text: .jsonl (a document a line), .txt (one document), or a language alone.",
)  # fmt: skip
@click.option(
    "--protocol", type=click.Choice(["document", "llamacpp"]), default="document",
    show_default=True, help="document: every token once, in its document. llamacpp: as"
    " llama-perplexity, for comparison with published numbers.",
)  # fmt: skip
@click.option(
    "--ctx", "n_ctx", type=click.IntRange(32, 1 << 20),
    help="Tokens in a window. [default: 1024; llamacpp: 512]",
)  # fmt: skip
@click.option(
    "--overlap",
    type=click.IntRange(1),
    help="Context from before, in later windows of a long document. [default: a quarter]",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many documents.")
@click.option(
    "--teacher", type=click.Choice(["auto", "live", "cached"]), default="auto", show_default=True,
    help="live: all models in memory at once. cached: one at a time, the reference's distributions"
    " on disk, a lower bound of the divergence. auto: by memory.",
)  # fmt: skip
@click.option(
    "--rest-share",
    type=click.FloatRange(1e-6, 0.5),
    default=0.01,
    show_default=True,
    help="With cached: the probability that may be left outside the top K, on average.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("scores"), show_default=True,
    help="Folder for the records.",
)  # fmt: skip
@options.BACKEND
@click.option("--threads", type=click.IntRange(1, 1024), help="[default: the cores there are]")
@click.option(
    "--rows", "n_rows", type=click.IntRange(ROWS_MIN, 1 << 16),
    help="Rows of logits a decode; memory is 8 bytes x vocabulary x rows x models."
    " [default: by vocabulary and backend]",
)  # fmt: skip
@click.option("-ngl", "--gpu-layers", type=click.IntRange(0), help="Layers on the GPU.")
@options.JSON
def score_run(as_json: bool, **rest: Any) -> None:
    """Score quants token by token against their full model, on held-out text.

    \b
    Example:
      imatrix-lab score run --reference model-f16.gguf --quant nb-Q4_K_M.gguf en-Q4_K_M.gguf
          --text nb=heldout.jsonl ml
    """  # fmt: skip

    from imatrix_lab.pipeline import score as evaluate

    request = ScoreRequest(compute=options.compute_options(rest), **rest)
    files = evaluate.score(request, options.session())
    if as_json:
        return options.emit([str(f) for f in files])
    for file in files:
        click.echo(file)


RUNS = click.argument(
    "runs", nargs=-1, required=True, metavar="RUN…", type=click.Path(path_type=Path, exists=True)
)


@score.command("show")
@RUNS
@options.JSON
def score_show(runs: tuple[Path, ...], as_json: bool) -> None:
    """Perplexity and divergence of each quant on each text, with intervals by document.

    \b
    Example:
      imatrix-lab score show scores
    """

    from imatrix_lab.records import summary

    found = summary.summaries(runs)
    if as_json:
        return options.emit(found)
    groups: dict[str, list[summary.Summary]] = {}
    for s in found:
        groups.setdefault(s.instrument(), []).append(s)
    for group in groups.values():
        _print_text(group)
    stderr.print(
        "95 % intervals, with documents (llamacpp: windows) as clusters. They may overlap where the"
        " difference of two quants is clear: imatrix-lab compare pairs them.",
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


def _print_text(found: list[summary.Summary]) -> None:
    """Print a table of quants under each measure, which fits 80 columns."""
    first = found[0]
    protocol, tools = first.signature["protocol"], first.signature["toolchain"]
    stderr.print(
        f"{first.text}: {first.n_tokens:,} tokens in {first.n_documents} clusters; protocol"
        f" {protocol['name']}, windows of {protocol['n_ctx']}; KLD {first.divergence};"
        f" llama.cpp {tools['commit']} on {tools['backend']}; metrics"
        f" {first.signature['metrics_version']}",
        markup=False,
    )  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("text")
    table.add_column("measure", no_wrap=True)
    table.add_column("quant", overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    for name, field, form in _MEASURES:
        rows = [(s.quant, getattr(s, field)) for s in found]
        if field == "ppl":
            rows.insert(0, ("(original)", first.ppl_reference))
        for i, (quant, interval) in enumerate(rows):
            table.add_row(
                "" if i or name != "perplexity" else escape(first.text), "" if i else name,
                escape(quant), format(interval.estimate, form), _range(interval, form),
            )  # fmt: skip
    stdout.print(table)
    for s in found:
        if s.n_nonfinite:
            stderr.print(f"{s.quant}: {s.n_nonfinite:,} tokens without a finite score, left out")


def _range(interval: Interval, form: str) -> str:
    if math.isnan(interval.low):
        return "none: one cluster"
    return f"{format(interval.low, form)} … {format(interval.high, form)}"


@score.command("agree")
@click.argument("run_a", type=click.Path(path_type=Path, exists=True))
@click.argument("run_b", type=click.Path(path_type=Path, exists=True))
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
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("quant", overflow="fold")
    for name in ("", "measure"):
        table.add_column(name, no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    for r in rows:
        words = (f"{r.text} {r.quant}", r.what)
        for name, interval, form in (
            ("ln PPL ratio", r.ln_ppl_ratio, "+.5f"), ("RMS Δp", r.rms_delta_p, ".3%"),
            ("same top", r.same_top, ".2%"), ("KLD mean", r.kld_mean, ".4f"),
        ):  # fmt: skip
            if interval:
                cells = (name, format(interval.estimate, form), _range(interval, form))
                table.add_row(*map(escape, words), *cells)
                words = ("", "")
    stdout.print(table)
    stderr.print("the runs differ in: " + (", ".join(fields) or "nothing"), markup=False)
    stderr.print("an effect smaller than the noise says nothing about the quant", style="dim")


@score.command("export")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--csv", "as_csv", is_flag=True, required=True, help="As CSV, the one format.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The file. [default: stdout]"
)
def score_export(file: Path, as_csv: bool, out: Path | None) -> None:
    """Write the records of one file as CSV.

    \b
    Example:
      imatrix-lab score export --csv scores/nb.demo-nb-Q4_K_M.parquet --out nb.csv
    """

    from imatrix_lab.records import parquet

    if out is None:
        parquet.export_csv(file, sys.stdout.buffer)
        return
    stream = io.BytesIO()
    parquet.export_csv(file, stream)
    write_whole(out, stream.getvalue().decode())
    click.echo(out)
