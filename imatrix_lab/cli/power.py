"""``imatrix-lab power``: what a planned comparison can detect, and what it costs."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.compare.benchmarks import KNOWN, VOTES
from imatrix_lab.stats.metrics import METRICS

if TYPE_CHECKING:
    from imatrix_lab.compare.power import PowerRow
    from imatrix_lab.stats.metrics import Metric


@click.command(cls=options.Once)
@click.option(
    "--task", default="", help=f"Benchmark: {', '.join(KNOWN)}; or {VOTES}, of people.",
)  # fmt: skip
@click.option(
    "--margin", type=float, required=True,
    help="Smallest difference that matters: nats, or points of a score.",
)  # fmt: skip
@click.option("--langs", default="", metavar="L,L", help="Languages to compare.")
@click.option(
    "--pilot", multiple=True, type=options.PathType(),
    help="Two runs that show how much quants differ; give it twice.",
)  # fmt: skip
@click.option("--metric", type=click.Choice(list(METRICS)), help="Metric measured in the pilot.")
@click.option(
    "--discordance", type=click.FloatRange(0, 100, min_open=True), metavar="PERCENT",
    help="Answers that differ between two quants. [default: 2, 5 and 10] Votes that are no ties."
    " [default: 70]",
)  # fmt: skip
@click.option(
    "--icc", type=click.FloatRange(0, 1),
    help="Correlation of the differences within a group. [default: 1, the worst case] Of votes on"
    " one prompt. [default: 0.25]",
)  # fmt: skip
@click.option(
    "--clusters", "n_clusters", type=click.IntRange(2),
    help="Documents, item groups or prompts. [default: those of the task or the pilot]",
)  # fmt: skip
@click.option(
    "--people", type=click.IntRange(1), help="How many vote. [default: 1, 3, 5, 10 and 20]",
)  # fmt: skip
@click.option(
    "--comparisons", "n_comparisons", type=click.IntRange(1),
    help="Number of tests in the family. [default: one per language and per pair of languages]",
)  # fmt: skip
@click.option(
    "--quants", "n_runs", type=click.IntRange(1),
    help="Number of quants to score, for the hours. [default: 2]",
)  # fmt: skip
@click.option(
    "--rate", "units_per_second", type=click.FloatRange(0, min_open=True), default=None,
    help="Measured items or tokens (votes of one person) per second, for the hours.",
)  # fmt: skip
@options.JSON
def power(
    margin: float, langs: str, discordance: float | None, units_per_second: float | None,
    n_runs: int | None, as_json: bool, **rest: Any,
) -> None:  # fmt: skip
    """Plan a comparison: smallest detectable difference, power, items needed, hours.

    \b
    Example:
      imatrix-lab power --task mixeval --margin 1.5 --langs en,nb
      imatrix-lab power --pilot a.parquet --pilot b.parquet --margin 0.005 --rate 100
      imatrix-lab power --task votes --margin 10
    """
    from imatrix_lab.compare.power import (
        DISCORDANCES,
        PowerRequest,
        describe_votes,
        plan_comparisons,
    )
    from imatrix_lab.corpus.languages import get

    given = {"discordance": discordance, "quants": n_runs, **rest}
    _refuse_meaningless({name for name, value in given.items() if value not in (None, ())}, rest)
    words = langs.replace(",", " ").split()
    languages = tuple(dict.fromkeys(get(word).code for word in words)) or ("one language",)
    request = PowerRequest(
        margin=margin,
        languages=languages,
        discordance=None if discordance is None else discordance / 100,
        units_per_second=units_per_second or 0.0,
        n_runs=n_runs or 2,
        **rest,
    )
    metric, rows = plan_comparisons(request)
    if as_json:
        return options.emit({"metric": metric.key, "rows": [dataclasses.asdict(r) for r in rows]})
    items = "tokens" if metric.key != "score" else "prompts" if request.task == VOTES else "items"
    stdout.print(_table(metric, rows, items))
    if request.task == VOTES:
        stderr.print(f"assumed of votes: {describe_votes(request)}", style="dim", soft_wrap=True)
    left_out = [f"{100 * d:g} %" for d in DISCORDANCES if margin >= 100 * d]
    if request.task in KNOWN and not (request.pilot or discordance) and left_out:
        what = f"{' and '.join(left_out)} left out: no difference can be as large as the margin"
        stderr.print(what, style="dim", soft_wrap=True)
    n_comparisons = round(0.05 / rows[0].alpha)
    stderr.print(
        f"alpha = 0.05 / {n_comparisons} comparisons (Bonferroni); power at a margin of"
        f" ±{margin:g} {metric.unit}; {items} needed for {100 * request.power:.0f} % power",
        style="dim",
        soft_wrap=True,
    )


def _refuse_meaningless(given: set[str], options: dict[str, Any]) -> None:
    """Raise `click.UsageError` for an option that this plan would ignore."""
    if options["task"] == VOTES:
        where, others = "votes", {"pilot", "metric", "quants"}
    elif options["pilot"]:
        where, others = "a pilot", {"discordance", "icc", "people"}
    else:
        where, others = "a benchmark without a pilot", {"metric", "people"}
    if meaningless := sorted(given & others):
        raise click.UsageError(f"--{meaningless[0]} has no meaning for {where}")


def _table(metric: Metric, rows: list[PowerRow], items: str) -> Table:
    names = ["comparison", items, "clusters", "design effect", "min. detectable", "power",
             "power (equivalence)", f"{items} needed", f"{items} needed (equivalence)"]  # fmt: skip
    has_hours = not math.isnan(rows[0].hours)
    table = new_table(*names, *(["hours", "hours (equivalence)"] if has_hours else []))
    for r in rows:
        hours = (
            ["" if math.isnan(h) else f"{h:.1f}" for h in (r.hours, r.hours_equivalence)]
            if has_hours
            else []
        )
        table.add_row(
            r.question, f"{r.n:,}", f"{r.n_clusters:,}", f"{r.design_effect:.2f}",
            _detectable(r.detectable * metric.scale), f"{100 * r.power_superiority:.0f} %",
            f"{100 * r.power_equivalence:.0f} %",
            *(f"{n:,}" if n else "more people" for n in (r.n_superiority, r.n_equivalence)), *hours,
        )  # fmt: skip
    return table


def _detectable(difference: float) -> str:
    return f"{difference:.3g}" if math.isfinite(difference) else "none"
