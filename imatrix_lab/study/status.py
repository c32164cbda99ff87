"""How far a study is: on the terminal, and in its folder for whoever looks from elsewhere."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from imatrix_lab.core import interrupt
from imatrix_lab.core.progress import Meter, Progress, Relay, Task
from imatrix_lab.errors import DiskFull
from imatrix_lab.study.folder import RUNNING, STOPPED, Folder
from imatrix_lab.study.graph import Failure, Record, Step

TELL_EVERY_S = 2.0
WAITING, DONE, FAILED, LEFT_OUT = "waiting", "done", "failed", "left out"


class Watch:
    """Hears of every step.

    Parameters
    ----------
    there : steps that were done before.
    whole : the task of all that is to do, in units of `Step.cost`.
    """

    def __init__(
        self, todo: Sequence[Step], there: Sequence[Step], folder: Folder, terminal: Progress,
        whole: Task,
    ):  # fmt: skip
        self._folder, self._terminal, self._whole = folder, terminal, whole
        self._lock, self._told = threading.RLock(), 0.0
        self._shares = dict.fromkeys((s.id for s in todo), 0.0)
        self._costs = {s.id: s.cost for s in todo}
        self.rate = Meter("study", sum(self._costs.values()), "")
        states = {s.id: DONE for s in there} | {s.id: WAITING for s in todo}
        self._steps: dict[str, dict[str, Any]] = {
            s.id: {"what": s.what, "state": states[s.id]} for s in (*there, *todo)
        }
        before = folder.status()
        self._earlier_s = float(before.get("total_s", 0.0))
        self._known = preparing(before)
        self._tell(now=True)

    # -- from the thread that runs the steps

    def progress(self, step: Step) -> Progress:
        """Return where a step reports."""
        return _OfStep(step, self, self._terminal)

    def began(self, step: Step, threads: int) -> None:
        """See `running.Watcher`."""
        self._change(step, {"state": RUNNING, "threads": threads})

    def ended(self, step: Step, outcome: Record | Failure | None) -> None:
        """See `running.Watcher`."""
        if isinstance(outcome, Record):
            self._change(step, {"state": DONE, "seconds": outcome.seconds})
            return
        if outcome is None:
            self._change(step, {"state": LEFT_OUT})
            return
        self._terminal.say(f"failed: {step.what}: {outcome.why}")
        self._change(step, {"state": FAILED, "why": outcome.why, "fix": outcome.fix})

    def total_s(self) -> float:
        """Return what all runs of the study took so far."""
        return self._earlier_s + self.rate.elapsed_s()

    def close(self, state: str) -> None:
        """Tell that nothing runs any more."""
        with self._lock:
            self._known |= {"state": state, "ended": _now()}
            for told in self._steps.values():
                if told["state"] == RUNNING:
                    told["state"] = STOPPED
            self._tell(now=True)

    # -- from the threads of steps

    def far(self, step: Step, share: float, told: dict[str, Any]) -> None:
        """Take note of how far a step is."""
        with self._lock:
            self._shares[step.id] = max(self._shares[step.id], min(1.0, share))
            self._steps[step.id] |= told
            self._count()
            self._tell()

    def _change(self, step: Step, change: dict[str, Any]) -> None:
        with self._lock:
            self._steps[step.id] = {"what": step.what, **change}
            if change["state"] != RUNNING:
                self._shares[step.id] = 1.0
            self._count()
            self._tell(now=True)

    def _count(self) -> None:
        done = sum(self._costs[step] * share for step, share in self._shares.items())
        self.rate.update(done)
        self._whole.update(done)

    def _tell(self, now: bool = False) -> None:
        if not now and time.monotonic() - self._told < TELL_EVERY_S:
            return
        self._told = time.monotonic()
        status = {
            "total_s": self.total_s(),
            "share": self.rate.share(),
            "left_s": self.rate.left_s(),
            "steps": self._steps,
        }
        with contextlib.suppress(DiskFull):  # steps will say so
            self._folder.tell(self._known | {"told": _now()} | status)


class _OfStep(Relay):
    """Progress of one step, which is interrupted here if it is to stop."""

    def __init__(self, step: Step, watch: Watch, terminal: Progress):
        super().__init__(terminal)
        self._step, self._watch = step, watch

    def say(self, message: str) -> None:
        """Print one line, with the step's name before it."""
        interrupt.check()
        self.inner.say(f"{self._step.what}: {message}")

    def title(self, name: str) -> str:
        """Return the step's name with the task's, unless it has those words already."""
        interrupt.check()
        what = self._step.what
        return what if {*name.split()} <= {*what.split()} else f"{what}: {name}"

    def updated(self, meter: Meter, note: str) -> None:
        """Write the task's state to the study's status."""
        interrupt.check()
        task = {
            "task": meter.name,
            "done": meter.done,
            "total": meter.total,
            "unit": meter.unit,
            "per_s": meter.per_s(),
            "left_s": meter.left_s(),
            "note": note,
        }
        self._watch.far(self._step, meter.share(), task)


def preparing(before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the status of a study that is about to run, after an earlier status of it."""
    lasting = {key: before[key] for key in ("recipe_folder", "total_s") if key in before}
    fresh = {"state": RUNNING, "pid": os.getpid(), "started": _now(), "told": _now()}
    return {"share": 0.0, "left_s": None, "steps": {}, **lasting, **fresh}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
