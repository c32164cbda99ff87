"""Progress and notes on stderr, tables on stdout: bars on a terminal, plain lines elsewhere."""

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

from imatrix_lab.core.format import duration, quantity, rate
from imatrix_lab.core.progress import Meter

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


class _RateColumn(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        meter: Meter = task.fields["meter"]
        return Text(rate(meter.per_s(), meter.left_s(), meter.unit), style="cyan")


class _PlainLines:
    """Prints a line about a task now and then."""

    def __init__(self) -> None:
        self._printed = time.monotonic()

    def __call__(self, meter: Meter, note: str) -> None:
        if time.monotonic() - self._printed < PLAIN_EVERY_S:
            return
        self._printed = time.monotonic()
        speed = rate(meter.per_s(), meter.left_s(), meter.unit)
        details = ", ".join(text for text in (speed, note) if text)
        line = f"{meter.name}: {100 * meter.share():.0f} % {f'({details})' if details else ''}"
        print(line, file=sys.stderr, flush=True)


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
    def task(self, name: str, total: float, unit: str) -> Iterator[Meter]:
        """Show a step's progress, then one line when it is done."""
        if self.plain:
            print(f"{name} …", file=sys.stderr, flush=True)
            meter = Meter(name, total, unit, _PlainLines())
            yield meter
        else:
            with self._display() as bars:

                def show(meter: Meter, note: str) -> None:
                    bars.update(bar, completed=meter.done, note=note)

                meter = Meter(name, total, unit, show)
                bar = bars.add_task(name, total=total, meter=meter, note="")
                try:
                    yield meter
                finally:
                    bars.remove_task(bar)
        per_s = meter.per_s()
        speed = f", {quantity(per_s, unit)}/s" if unit and per_s >= 1 else ""
        self.say(f"{name}: done in {duration(meter.elapsed_s())}{speed}")

    @contextmanager
    def _display(self) -> Iterator[RichProgress]:
        """Yield the one display that all tasks share while any of them runs."""
        with self._lock:
            bars = self._bars = self._bars or RichProgress(
                TextColumn("{task.description}"), BarColumn(24),
                TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
                _RateColumn(), TextColumn("[dim]{task.fields[note]}"),
                console=stderr, transient=True,
            )  # fmt: skip
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
