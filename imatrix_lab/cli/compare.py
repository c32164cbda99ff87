"""``imatrix-lab compare``: is one quant better than another, equivalent, or undecided?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import Terminal, new_table, stderr, stdout
from imatrix_lab.compare import design
from imatrix_lab.compare.design import ComparisonPlan
from imatrix_lab.core.format import probability, with_error
from imatrix_lab.errors import UsageError
from imatrix_lab.stats.metrics import METRICS

if TYPE_CHECKING:
    from imatrix_lab.compare.compare import Report
    from imatrix_lab.compare.controls import Control
    from imatrix_lab.stats.comparison import Comparison


@click.command()
@click.argument("runs", nargs=-1, required=True, type=options.PathType())
@click.option(
    "--family", metavar="FACTORS",
    help="Compare a grid: factors joined by x. The first is compared, the rest adjusted for;"
    " of calib, lang, type.",
)  # fmt: skip
@click.option(
    "--baseline", default="", help="Compare with this one only, e.g. en. [default: all pairs]"
)
@click.option(
    "--margin", "margins", multiple=True, metavar="[METRIC=]VALUE",
    help="Smallest difference that matters, chosen beforehand: nats, or points of a score.",
)  # fmt: skip
@click.option(
    "--metric", "metrics", type=click.Choice(list(METRICS)), multiple=True,
    help="May be given several times. [default: kld_nats nll_nats; score for items]",
)  # fmt: skip
@click.option(
    "--adjust", type=click.Choice(design.ADJUSTMENTS), default="holm", show_default=True,
    help="Which adjusted p value decides in a family.",
)  # fmt: skip
@click.option("--resamples", "n_resamples", type=click.IntRange(100), default=10_000,
              show_default=True, help="Number of bootstrap/permutation resamples.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--any-size", is_flag=True, help="Compare files whose sizes differ by more than 0.3 %"
              " too; the result may be a matter of size.")  # fmt: skip
@options.JSON
def compare(
    runs: tuple[Path, ...], family: str | None, margins: tuple[str, ...],
    metrics: tuple[str, ...], as_json: bool, **rest: Any,
) -> None:  # fmt: skip
    """Is one quant better than another, equivalent, or can these data not tell?

    RUNS are files of records, or folders of them: two to compare, or a grid with --family.

    \b
    Example:
      imatrix-lab compare nb-Q4_K_M.parquet en-Q4_K_M.parquet --margin 0.005
      imatrix-lab compare runs/ --family calibxlangxtype --margin kld_nats=0.005
    """
    from imatrix_lab.compare.compare import compare_runs, report_as_json

    factors = design.parse_family(family) if family else ()
    plan = ComparisonPlan(_margins(margins), factors, **rest)
    report = compare_runs(runs, plan, metrics, Terminal())
    if as_json:
        return options.emit(report_as_json(report))
    _print(report)


def _margins(texts: tuple[str, ...]) -> dict[str, float]:
    """Return margins in stored units; a bare value is for KLD and for scores, in their units."""
    margins = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not number > 0 or (name and name not in METRICS):
            raise UsageError(
                f"--margin {text} is not a positive number, or METRIC=NUMBER",
                fix=f"--margin kld_nats=0.005; metrics: {', '.join(METRICS)}",
            )
        for key in (name,) if name else ("kld_nats", "score"):
            margins[key] = number / METRICS[key].scale
    return margins


def _print(report: Report) -> None:
    from imatrix_lab.stats import sentences

    for gap in report.size_gaps:
        what = f"not of one size: {gap.words()}; the difference may be that of size"
        stdout.print(what, markup=False, soft_wrap=True)
    if len(report.comparisons) <= 4:
        for c in report.comparisons:
            stdout.print(sentences.plain(c), markup=False, soft_wrap=True)
            stdout.print(sentences.formal(c) + "\n", markup=False, soft_wrap=True)
    stdout.print(_table(report.comparisons))
    for x in report.interactions:
        words = (x.a, x.b, x.type, METRICS[x.metric], x.contrast, x.p_holm)
        stdout.print(sentences.formal_interaction(*words), markup=False, soft_wrap=True)
    if report.controls:
        stdout.print(_controls(report.controls))
    for note in report.notes:
        stderr.print(note, markup=False)
    first = report.comparisons[0]
    adjusted = first.family and first.adjust != "none"
    family = f", {first.adjust} in each family" if adjusted else ""
    stderr.print(
        f"null: no difference; threshold 0.05{family}; differences are A minus B; the results do"
        " not extend to other models, texts or builds of llama.cpp",
        style="dim",
        soft_wrap=True,
    )


def _table(comparisons: Sequence[Comparison]) -> Table:
    has_items = any(c.items for c in comparisons)
    table = new_table(
        "text", "A", "B", "metric", "A - B", "95 % CI", "p", "Holm", "max-T", "BH", "equivalence",
        "detectable", *(["McNemar", "Newcombe 95 % CI"] if has_items else []), n_text=4,
    )  # fmt: skip
    table.add_column("verdict")
    for c in comparisons:

        def text(*values: float, c: Comparison = c) -> str:
            scale = c.question.metric.scale
            return " … ".join(with_error(value * scale, c.std_error * scale) for value in values)

        exact = ["", ""] if has_items else []
        if c.items:
            newcombe = text(c.items.newcombe_low, c.items.newcombe_high)
            exact = [probability(c.items.mcnemar.p_exact), newcombe]
        table.add_row(
            *(escape(t) for t in (c.question.text, c.question.a, c.question.b)),
            c.question.metric.key, text(c.estimate), text(c.low, c.high),
            *(probability(p) for p in (c.p_value, c.p_holm, c.p_max_t, c.q_bh, c.p_equivalence)),
            text(c.detectable), *exact, c.verdict(),
        )  # fmt: skip
    return table


def _controls(controls: Sequence[Control]) -> Table:
    table = new_table(
        "control", "text", "type", "metric", "expected", "estimate", "95 % CI", "x noise", n_text=5
    )
    for c in controls:
        scale = METRICS[c.metric].scale
        estimate, low, high = (
            with_error(v * scale, c.std_error * scale) for v in (c.estimate, c.low, c.high)
        )
        times = "" if math.isnan(c.noise_multiple) else f"{c.noise_multiple:.1f}"
        table.add_row(escape(c.name), escape(c.text), c.type, c.metric, c.expected, estimate,
                      f"{low} … {high}", times)  # fmt: skip
    return table
