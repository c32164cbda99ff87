"""A study's plan, printed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.markup import escape

from imatrix_lab.cli.terminal import duration, numbers_table, quantity, stderr, stdout

if TYPE_CHECKING:
    from imatrix_lab.study.planning import Plan


def show(plan: Plan) -> None:
    """Print the steps, what they take, what can be found, and what cannot."""
    if plan.rows:
        _steps(plan)
    _effects(plan)
    for warning in plan.warnings:
        stderr.print(f"warning: {warning}", markup=False, soft_wrap=True)


def _steps(plan: Plan) -> None:
    table = numbers_table("step", "state", "time", "disk", "memory")
    rows = [row for row in plan.rows if row.kind != "tidy"]
    for row in rows:
        table.add_row(
            escape(row.what), "there" if row.is_done else "to do",
            "" if row.is_done else duration(row.seconds), _bytes(row.disk_bytes),
            _bytes(row.memory_bytes),
        )  # fmt: skip
    stdout.print(table)
    for name, rate in plan.rates.items():
        speed = quantity(rate.per_second, rate.unit)
        stdout.print(f"{name}: {speed}/s, by {rate.stands_on}", markup=False, soft_wrap=True)
    done = sum(row.is_done for row in rows)
    stdout.print(
        f"{done} of {len(rows)} steps are there; the rest takes about"
        f" {duration(plan.seconds)}, at most {_bytes(plan.disk_peak_bytes)} of disk"
        f" ({_bytes(plan.disk_final_bytes)} in the end, {_bytes(plan.disk_free_bytes)} free) and"
        f" {_bytes(plan.memory_bytes)} of memory a step (limit {_bytes(plan.memory_limit_bytes)})",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _effects(plan: Plan) -> None:
    table = numbers_table("what can be found", "difference", "margin", "unit")
    for effect in plan.effects:
        power = effect.power
        table.add_row(
            escape(power.what), _number(power.detectable), _number(power.margin),
            escape(power.unit),
        )  # fmt: skip
    if table.row_count:
        stdout.print(table)
        assumed = dict.fromkeys(effect.power.assumed for effect in plan.effects)
        for words in assumed:
            stdout.print(f"with 80 % power; {words}", markup=False, soft_wrap=True, style="dim")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _bytes(n: int) -> str:
    return quantity(n, "B") if n else ""
