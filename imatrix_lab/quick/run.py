"""When the small answer is made, and what becomes of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from imatrix_lab import publish, toolchain, typed
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.pipeline import Result
from imatrix_lab.progress import Progress, Task
from imatrix_lab.quick import case as cases
from imatrix_lab.quick.answer import Answer, as_json
from imatrix_lab.quick.case import Case
from imatrix_lab.records import Request
from imatrix_lab.store import Store

MINUTES_MAX = 10.0
"""What would take longer is made only when asked for."""


class Watch:
    """A `Progress` that passes all on, and knows how fast tokens went through the model.

    Attributes
    ----------
    tokens_per_s : of the last long step; NaN before one.
    """

    def __init__(self, inner: Progress):
        self._inner, self.tokens_per_s = inner, math.nan

    def say(self, message: str) -> None:
        """Pass it on."""
        self._inner.say(message)

    @contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Task]:
        """Pass it on; time it, if it is about tokens."""
        began = time.monotonic()
        with self._inner.task(name, total, unit) as task:
            timed = _Timed(task)
            yield timed
        if unit == "tokens" and timed.done > timed.base:
            self.tokens_per_s = (timed.done - timed.base) / max(time.monotonic() - began, 1e-3)


class _Timed:
    """A task that knows how much was done here, and not by an earlier run."""

    def __init__(self, inner: Task):
        self._inner = inner
        self.base = self.done = 0.0
        self._fresh = True

    def update(self, done: float, note: str = "") -> None:
        self._inner.update(done, note)
        if self._fresh and note:
            self.base = done
        self.done, self._fresh = done, False


def answer(request: Request, made: Result, store: Store, watch: Watch) -> Answer | None:
    """Return what tuning bought the first type that was asked for; into manifest and card too.

    None where it was not wanted, would take long, or, unless asked for, cannot be had: the files
    are there all the same.

    Raises
    ------
    ImatrixLabError : it was asked for, and cannot be had.
    """
    if request.quick is False:
        return None
    try:
        found = _answer(request, made, store, watch)
    except ImatrixLabError as error:
        if request.quick:
            raise
        watch.say(f"note: no quick answer: {error}")
        return None
    if found:
        publish.add(request.out, made.files[0].name, {"quick": as_json(found)})
    return found


def _answer(request: Request, made: Result, store: Store, watch: Watch) -> Answer | None:
    tools = toolchain.get(store, request.backend, watch)
    model, corpus = made.model, made.corpus
    assert corpus is not None  # of what `tune` made
    english = cases.english(request, tools, model, corpus, store, watch)
    case = Case(request, made, tools, english)
    wanted = cases.inputs(request, tools, model, corpus, made.quants[0].sha256, english)
    if not store.find("quick", wanted):
        case.demand_possible()
        minutes = case.seconds(watch.tokens_per_s) / 60
        if minutes > MINUTES_MAX and not request.quick:
            watch.say(
                f"note: what tuning bought would take about {minutes:.0f} min to find out; QUICK=1"
                " (imatrix-lab tune --quick) does it all the same"
            )
            return None
        watch.say(
            f"what tuning bought: other files of type {case.type} are made and scored beside this"
            f" one; about {math.ceil(minutes)} min"
        )
    label = f"{model.label}-{corpus.language}-{case.type}"
    facts = store.get(
        "quick", label, wanted, lambda _, scratch: case.make(scratch, store, watch), watch
    ).facts
    return typed.build(Answer, facts, label)
