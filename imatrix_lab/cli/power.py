"""``imatrix-lab power``: what a planned comparison can detect, and what it costs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import stderr, stdout
from imatrix_lab.compare import power as planning
from imatrix_lab.stats.comparison import METRICS

if TYPE_CHECKING:
    from imatrix_lab.stats.comparison import Metric


@click.command()
@click.option("--task", default="", help=f"Benchmark: {', '.join(planning.KNOWN)}.")
@click.option(
    "--margin",
    type=float,
    required=True,
    help="Smallest difference that matters: nats, or points of a score.",
)
@click.option("--langs", default="", metavar="L,L", help="Languages to be compared.")
@click.option(
    "--pilot",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Two runs that show how much differs; give it twice.",
)
@click.option("--metric", type=click.Choice(list(METRICS)), help="Of the pilot.")
@click.option(
    "--discordance",
    type=click.FloatRange(0, 100, min_open=True),
    metavar="PERCENT",
    help="Unequal answers of two quants. [default: 2, 5 and 10]",
)
@click.option(
    "--icc",
    type=click.FloatRange(0, 1),
    help="Correlation of differences in a group. [default: 1, the worst case]",
)
@click.option(
    "--clusters",
    "n_clusters",
    type=click.IntRange(2),
    help="Documents or item groups. [default: those of the task or the pilot]",
)
@click.option(
    "--comparisons",
    "n_comparisons",
    type=click.IntRange(1),
    help="Tests in the family. [default: each language and every two]",
)
@click.option(
    "--quants",
    "n_runs",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Quants to be scored, for the hours.",
)
@click.option(
    "--rate", "units_per_second", type=click.FloatRange(0, min_open=True), default=None,
    help="Items or tokens a second, measured, for the hours.",
)  # fmt: skip
@options.JSON
def power(
    margin: float, langs: str, discordance: float | None, units_per_second: float | None,
    as_json: bool, **rest: Any,
) -> None:  # fmt: skip
    """What a planned comparison could find, how many items it needs, how many hours.

    \b
    Example:
      imatrix-lab power --task mixeval --margin 1.5 --langs en,nb
      imatrix-lab power --pilot a.parquet --pilot b.parquet --margin 0.005 --rate 100
    """  # fmt: skip

    from imatrix_lab.compare import compare as output
    from imatrix_lab.compare import power as planning

    languages = tuple(dict.fromkeys(langs.replace(",", " ").split())) or ("one language",)
    request = planning.Request(
        margin=margin,
        languages=languages,
        discordance=None if discordance is None else discordance / 100,
        units_per_second=units_per_second or 0.0,
        **rest,
    )
    metric, rows = planning.plan(request)
    if as_json:
        return options.emit(
            output.plain({"metric": metric.key, "rows": [dataclasses.asdict(r) for r in rows]})
        )
    stdout.print(_plan_table(metric, rows))
    stderr.print(
        f"for {100 * request.power:.0f} % power at alpha {rows[0].alpha:.4g}"
        f" (0.05 over the family); margin ±{margin:g} {metric.unit}",
        style="dim",
    )


def _plan_table(metric: Metric, rows: list[planning.Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("comparison", overflow="fold")
    for name in (
        "n", "groups", "design effect", "detectable", "power", "power to show equal",
        "n to find the margin", "n to show equal", "hours", "hours to show equal",
    ):  # fmt: skip
        table.add_column(name, justify="right", overflow="fold")
    for r in rows:
        hours = ("" if math.isnan(h) else f"{h:.1f}" for h in (r.hours, r.hours_equivalence))
        table.add_row(
            r.question, f"{r.n:,}", f"{r.n_clusters:,}", f"{r.design_effect:.2f}",
            f"{r.detectable * metric.scale:.3g}", f"{100 * r.power_superiority:.0f} %",
            f"{100 * r.power_equivalence:.0f} %", f"{r.n_superiority:,}", f"{r.n_equivalence:,}",
            *hours,
        )  # fmt: skip
    return table
