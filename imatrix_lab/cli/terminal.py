"""Progress and notes on stderr, tables on stdout: bars on a terminal, plain lines elsewhere."""

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from imatrix_lab.core.progress import Rate

PLAIN_EVERY_S = 15.0

stderr = Console(stderr=True, highlight=False)
# a pipe gets whole lines, whatever their length
stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 240)


def new_table(*columns: str, n_text: int = 1, header: bool = True) -> Table:
    """Return an empty table; columns after the first `n_text` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=header)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < n_text else "right", overflow="fold")
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


def speed(rate: Rate, unit: str) -> str:
    """Return e.g. ``138 tokens/s, 2 min 05 s left``; nothing while it is too early to tell."""
    per_s, left_s = rate.per_s(), rate.left_s()
    if math.isnan(left_s):
        return ""
    left = f"{duration(left_s)} left" if left_s else ""
    if not unit:
        return left
    per = quantity(per_s, unit) + "/s" if per_s >= 1 or unit == "B" else f"{per_s:.2f} {unit}/s"
    return ", ".join(p for p in (per, left) if p)


class _RateColumn(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        rate: Rate = task.fields["rate"]
        return Text(speed(rate, task.fields["unit"]), style="cyan")


class _BarTask:
    def __init__(self, bars: RichProgress, name: str, total: float, unit: str):
        self.rate = Rate(total)
        self.bars = bars
        self.id = bars.add_task(name, total=total, rate=self.rate, unit=unit, note="")

    def update(self, done: float, note: str = "") -> None:
        self.rate.update(done, bool(note))
        self.bars.update(self.id, completed=done, note=note)

    def close(self) -> None:
        self.bars.remove_task(self.id)


class _PlainTask:
    def __init__(self, name: str, total: float, unit: str):
        self.name, self.unit, self.rate = name, unit, Rate(total)
        self.spoke = time.monotonic()

    def update(self, done: float, note: str = "") -> None:
        self.rate.update(done, bool(note))
        if time.monotonic() - self.spoke >= PLAIN_EVERY_S:
            self.spoke = time.monotonic()
            share = 100 * done / self.rate.total
            words = ", ".join(w for w in (speed(self.rate, self.unit), note) if w)
            print(
                f"{self.name}: {share:.0f} % {f'({words})' if words else ''}",
                file=sys.stderr,
                flush=True,
            )


class Terminal:
    """A `Progress` that draws on stderr; threads may share it."""

    def __init__(self, plain: bool | None = None):
        self.plain = not stderr.is_terminal if plain is None else plain
        self._lock = threading.Lock()
        self._bars: RichProgress | None = None
        self._n_shown = 0

    def say(self, message: str) -> None:
        """Print one line."""
        if self.plain:
            print(message, file=sys.stderr, flush=True)
        else:
            stderr.print(message, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[_BarTask | _PlainTask]:
        """Show a step's progress, then one line when it is done."""
        began = time.monotonic()
        task: _BarTask | _PlainTask
        if self.plain:
            print(f"{name} …", file=sys.stderr, flush=True)
            task = _PlainTask(name, total, unit)
            yield task
        else:
            with self._display() as bars:
                task = _BarTask(bars, name, total, unit)
                try:
                    yield task
                finally:
                    task.close()
        per_s = task.rate.per_s()
        words = f", {quantity(per_s, unit)}/s" if unit and per_s >= 1 else ""
        self.say(f"{name}: done in {duration(time.monotonic() - began)}{words}")

    @contextmanager
    def _display(self) -> Iterator[RichProgress]:
        """Yield the one display that all tasks share while any of them runs."""
        with self._lock:
            bars = self._bars = self._bars or _new_bars()
            self._n_shown += 1
            bars.start()
        try:
            yield bars
        finally:
            with self._lock:
                self._n_shown -= 1
                if not self._n_shown:
                    self._bars = None
                    bars.stop()


def _new_bars() -> RichProgress:
    columns = (
        TextColumn("{task.description}"), BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
        _RateColumn(), TextColumn("[dim]{task.fields[note]}"),
    )  # fmt: skip
    return RichProgress(*columns, console=stderr, transient=True)
