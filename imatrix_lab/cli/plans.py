"""The plan of a study on the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from imatrix_lab.cli.terminal import duration, numbers_table, quantity, stderr, stdout

if TYPE_CHECKING:
    from imatrix_lab.results import Power
    from imatrix_lab.study.planning import Plan


def show(plan: Plan) -> None:
    """Print steps, what they take, what can be found, and what is doubtful."""
    if plan.rows:
        stdout.print(_steps(plan))
        stdout.print(f"\n{_totals(plan)}\n")
        stdout.print(_rates(plan))
    stdout.print("\nsmallest differences found with 80 % power")
    stdout.print(_effects(plan))
    for warning in plan.warnings:
        stderr.print(f"warning: {warning}", markup=False, soft_wrap=True)


def _steps(plan: Plan) -> Table:
    table = numbers_table("step", "state", "time", "disk", "memory")
    for row in plan.rows:
        if row.kind == "tidy":
            continue
        time = "" if row.is_done else duration(row.seconds)
        table.add_row(
            escape(row.what),
            "cached" if row.is_done else "to do",
            time if row.stands_on or not time else f"{time}?",
            quantity(row.disk_bytes, "B") if row.disk_bytes else "",
            quantity(row.memory_bytes, "B") if row.memory_bytes and not row.is_done else "",
        )
    return table


def _totals(plan: Plan) -> str:
    """Return what all of it takes; a time with a question mark is not measured."""
    rows = [row for row in plan.rows if row.kind != "tidy"]
    done = sum(row.is_done for row in rows)
    return (
        f"{plan.name}: {len(rows)} steps, {done} cached; about {duration(plan.seconds)} on all"
        f" cores (? is assumed); disk {quantity(plan.disk_peak_bytes, 'B')} at most,"
        f" {quantity(plan.disk_final_bytes, 'B')} at the end,"
        f" {quantity(plan.disk_free_bytes, 'B')} free; memory"
        f" {quantity(plan.memory_bytes, 'B')} of {quantity(plan.memory_limit_bytes, 'B')}"
    )


def _rates(plan: Plan) -> Table:
    table = numbers_table("this machine", "a second", "measured on")
    table.columns[2].justify = "left"
    for name, rate in plan.rates.items():
        table.add_row(escape(name), quantity(rate.per_second, rate.unit), rate.stands_on)
    return table


def _effects(plan: Plan) -> Table:
    table = numbers_table("between", "difference", "margin", "units", "would decide", "standing on")
    table.columns[5].justify = "left"
    for effect in plan.effects:
        power = effect.power
        table.add_row(
            escape(power.what),
            _value(power.detectable, power),
            "none" if math.isnan(power.margin) else _value(power.margin, power),
            f"{effect.clusters:,}",
            f"{effect.clusters_needed:,}" if effect.clusters_needed else "",
            power.assumed,
        )
    return table


def _value(value: float, power: Power) -> str:
    return "none" if math.isinf(value) else f"{value:.2g} {power.unit}"
