"""Talk on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_S = 15.0

stderr = Console(stderr=True, highlight=False)
# a pipe gets whole lines, whatever their length
stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 240)


def numbers_table(*names: str) -> Table:
    """Return a table whose columns after the first are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    return table


def duration(seconds: float) -> str:
    """Return a time a person reads: 9 s, 4 min 10 s, 2 h 05 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def quantity(n: float, unit: str) -> str:
    """Return a count with its unit: 512 tokens, 2.1 MiB, 268M weights."""
    if unit == "B":
        return f"{n / 2**20:.1f} MiB" if n < 2**30 else f"{n / 2**30:.2f} GiB"
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if n >= limit:
            return f"{n / limit if suffix != 'k' else n / 1e3:.3g}{suffix} {unit}"
    return f"{n:,.0f} {unit}"


class Rate:
    """Units a second and time left, from what was done since the step began."""

    def __init__(self, total: float):
        self.total, self.began, self.base, self.done = total, time.monotonic(), 0.0, 0.0
        self.fresh = True

    def update(self, done: float, resumed: bool) -> None:
        """Take the count so far; a resumed start is not counted as speed."""
        if resumed and self.fresh:
            self.base = done
        self.done, self.fresh = done, False

    def per_s(self) -> float:
        """Return units a second, 0 if unknown yet."""
        elapsed = time.monotonic() - self.began
        return (self.done - self.base) / elapsed if elapsed > 0.5 else 0.0

    def words(self, unit: str) -> str:
        """Return e.g. ``138 tokens/s, 2 min 05 s left``."""
        rate = self.per_s()
        if not rate or self.done - self.base < 0.01 * self.total:
            return ""  # too early to tell
        left = f"{duration((self.total - self.done) / rate)} left" if self.done < self.total else ""
        if not unit:
            return left
        per = quantity(rate, unit) + "/s" if rate >= 1 or unit == "B" else f"{rate:.2f} {unit}/s"
        return ", ".join(p for p in (per, left) if p)


class _RateColumn(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        rate: Rate = task.fields["rate"]
        return Text(rate.words(task.fields["unit"]), style="cyan")


class _BarTask:
    def __init__(self, bars: RichProgress, name: str, total: float, unit: str):
        self.rate = Rate(total)
        self.bars = bars
        self.id = bars.add_task(name, total=total, rate=self.rate, unit=unit, note="")

    def update(self, done: float, note: str = "") -> None:
        self.rate.update(done, bool(note))
        self.bars.update(self.id, completed=done, note=note)


class _PlainTask:
    def __init__(self, name: str, total: float, unit: str):
        self.name, self.unit, self.rate = name, unit, Rate(total)
        self.spoke = time.monotonic()

    def update(self, done: float, note: str = "") -> None:
        self.rate.update(done, bool(note))
        if time.monotonic() - self.spoke >= PLAIN_EVERY_S:
            self.spoke = time.monotonic()
            share = 100 * done / self.rate.total
            words = ", ".join(w for w in (self.rate.words(self.unit), note) if w)
            print(
                f"{self.name}: {share:.0f} % {f'({words})' if words else ''}",
                file=sys.stderr,
                flush=True,
            )


class Terminal:
    """A `Progress` that draws on stderr."""

    def __init__(self, plain: bool | None = None):
        self.plain = not stderr.is_terminal if plain is None else plain

    def say(self, message: str) -> None:
        """Print one line."""
        if self.plain:
            print(message, file=sys.stderr, flush=True)
        else:
            stderr.print(message, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[_BarTask | _PlainTask]:
        """Show a step while it lasts, and one line when it is done."""
        began = time.monotonic()
        task: _BarTask | _PlainTask
        if self.plain:
            print(f"{name} …", file=sys.stderr, flush=True)
            task = _PlainTask(name, total, unit)
            yield task
        else:
            columns = (
                TextColumn("{task.description}"), BarColumn(24),
                TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
                _RateColumn(), TextColumn("[dim]{task.fields[note]}"),
            )  # fmt: skip
            with RichProgress(*columns, console=stderr, transient=True) as bars:
                task = _BarTask(bars, name, total, unit)
                yield task
        rate = task.rate
        speed = f", {quantity(rate.per_s(), unit)}/s" if unit and rate.per_s() >= 1 else ""
        self.say(f"{name}: done in {duration(time.monotonic() - began)}{speed}")
