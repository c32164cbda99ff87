"""How far a study is: on the terminal, and in its folder for other processes."""

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from imatrix_lab.core import interrupt
from imatrix_lab.core.progress import Meter, Progress, Relay, Task
from imatrix_lab.errors import DiskFull
from imatrix_lab.report.results import Missing
from imatrix_lab.study.folder import RUNNING, STOPPED, Folder
from imatrix_lab.study.graph import Step, StepRecord, Steps

WRITE_EVERY_S = 2.0
WAITING, DONE, FAILED, SKIPPED = "waiting", "done", "failed", "left out"  # in status.json


class Watch:
    """Writes the status of every step, those `done` before too; the task counts `Step.cost`."""

    def __init__(self, todo: Steps, done: Steps, folder: Folder, terminal: Progress, task: Task):
        self._folder, self._terminal, self._task = folder, terminal, task
        self._lock, self._written, self.state = threading.RLock(), 0.0, STOPPED
        self._shares = dict.fromkeys((s.id for s in todo), 0.0)
        self._costs = {s.id: s.cost for s in todo}
        self.meter = Meter("study", sum(self._costs.values()), "")
        states = {s.id: DONE for s in done} | {s.id: WAITING for s in todo}
        self._steps: dict[str, dict[str, Any]] = {
            s.id: {"what": s.what, "state": states[s.id]} for s in (*done, *todo)
        }
        before = folder.status()
        self._earlier_s = float(before.get("total_s", 0.0))
        self._status = preparing(before)
        self._write(now=True)

    def progress(self, step: Step) -> Progress:
        """Return where a step reports."""
        return _StepProgress(step, self, self._terminal)

    def began(self, step: Step, threads: int) -> None:
        """Take note that a step begins."""
        self._change(step, {"state": RUNNING, "threads": threads})

    def knows(self, name: str) -> bool:
        """Whether there is a step of this name."""
        return name in self._steps

    def placed(self, name: str, state: str, machine: str) -> None:
        """Take note on which machine of a cluster a step runs; it waits for one without."""
        with self._lock:
            self._steps[name] |= {"state": state, "machine": machine}
            self._write(now=True)

    def ended(self, step: Step, outcome: StepRecord | Missing | None) -> None:
        """Take note that a step has ended."""
        if isinstance(outcome, StepRecord):
            self._change(step, {"state": DONE, "seconds": outcome.seconds})
        elif outcome is None:
            self._change(step, {"state": SKIPPED})
        else:
            self._terminal.say(f"failed: {step.what}: {outcome.why}")
            self._change(step, {"state": FAILED, "why": outcome.why, "fix": outcome.fix})

    def total_s(self) -> float:
        """Return what all runs of the study took so far."""
        return self._earlier_s + self.meter.elapsed_s()

    def close(self) -> None:
        """Write that nothing runs any more, and the `state` that the study is in then."""
        with self._lock:
            self._status |= {"state": self.state, "ended": _now()}
            for step in self._steps.values():
                if step["state"] == RUNNING:
                    step["state"] = STOPPED
            self._write(now=True)

    def _change(self, step: Step, change: dict[str, Any]) -> None:
        with self._lock:
            before = self._steps[step.id]
            kept = {key: before[key] for key in ("machine",) if key in before}
            self._steps[step.id] = {"what": step.what, **kept, **change}
            if change["state"] != RUNNING:
                self._shares[step.id] = 1.0
            self._count()
            self._write(now=True)

    def update(self, step: Step, share: float, details: dict[str, Any]) -> None:
        """Take note of how far a step is."""
        with self._lock:
            self._shares[step.id] = max(self._shares[step.id], min(1.0, share))
            self._steps[step.id] |= details
            self._count()
            self._write()

    def _count(self) -> None:
        done = sum(self._costs[step] * share for step, share in self._shares.items())
        self.meter.update(done)
        self._task.update(done)

    def _write(self, now: bool = False) -> None:
        if not now and time.monotonic() - self._written < WRITE_EVERY_S:
            return
        self._written = time.monotonic()
        status = {"told": _now(), "total_s": self.total_s(), "steps": self._steps}
        status |= {"share": self.meter.share(), "left_s": self.meter.left_s()}
        with contextlib.suppress(DiskFull):  # the steps will report it
            self._folder.write_status(self._status | status)


class _StepProgress(Relay):
    """Progress of one step, which is interrupted here if it is to stop."""

    def __init__(self, step: Step, watch: Watch, terminal: Progress):
        super().__init__(terminal)
        self._step, self._watch = step, watch

    def say(self, message: str) -> None:
        interrupt.check()
        self.inner.say(f"{self._step.what}: {message}")

    def title(self, name: str) -> str:
        """Return the step's name with the task's, unless it has those words already."""
        interrupt.check()
        what = self._step.what
        return what if {*name.split()} <= {*what.split()} else f"{what}: {name}"

    def updated(self, meter: Meter, note: str) -> None:
        interrupt.check()
        details = {"task": meter.name, "done": meter.done, "total": meter.total}
        details |= {"unit": meter.unit, "per_s": meter.per_s(), "left_s": meter.left_s()}
        self._watch.update(self._step, meter.share(), {**details, "note": note})


def preparing(before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the status of a study that is about to run, given its earlier status."""
    kept = ("recipe_folder", "total_s", "class", "token")
    lasting = {key: before[key] for key in kept if key in before}
    fresh = {"state": RUNNING, "pid": os.getpid(), "started": _now(), "told": _now()}
    return {"share": 0.0, "left_s": None, "steps": {}, **lasting, **fresh}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
