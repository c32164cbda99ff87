"""Run steps side by side, within cores and memory; a failure stops only what depends on it."""

import contextlib
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imatrix_lab.core import interrupt, process
from imatrix_lab.core.store import os_error
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.report.results import Missing
from imatrix_lab.study import graph
from imatrix_lab.study.graph import Records, Step, StepRecord, Steps, Turn
from imatrix_lab.study.status import Watch


@dataclass(frozen=True)
class Capacity:
    """What may be used at a time; threads are those of each step, 0 to share the cores."""

    jobs: int
    cores: int
    memory_bytes: int
    threads: int = 0


@dataclass(frozen=True)
class Outcome:
    """Records of all that was done, in this run or earlier (files may be gone); what failed."""

    records: dict[str, StepRecord]
    missing: tuple[Missing, ...]


class Scheduler:
    """Runs the steps that are not done yet; `save` stores each record as soon as it is there.

    Tracebacks of bugs go into the folder `logs`.
    """

    def __init__(
        self, steps: Steps, records: Records, capacity: Capacity, watch: Watch,
        save: Callable[[str, StepRecord], None], logs: Path,
    ):  # fmt: skip
        self.capacity, self.watch, self.save, self.logs = capacity, watch, save, logs
        self.steps, self.keys = steps, graph.keys(steps)
        self.records = graph.finished(steps, records)
        self.waiting = graph.to_run(steps, self.records)
        self.running: dict[str, tuple[Step, int, threading.Thread]] = {}
        self.failures: dict[str, Missing] = {}
        self.causes: dict[str, set[str]] = {}
        """Of each step that failed or was skipped, the steps at fault."""
        self._stop = threading.Event()
        self._ended = queue.SimpleQueue[tuple[Step, StepRecord | BaseException]]()

    def run(self) -> Outcome:
        """Run the steps; none is left running when this returns or raises."""
        try:
            while self.waiting or self.running:
                self._start_ready()
                if self.running:
                    self._wait()
        except BaseException:
            self._interrupt()
            raise
        missing, whole = [], [step for step in self.steps if not step.part_of]
        for cause in [step.id for step in whole if step.id in self.failures]:
            skipped = (s for s in whole if cause in self.causes.get(s.id, ()))
            left_out = tuple(step.what for step in skipped if step.id != cause)
            missing.append(replace(self.failures[cause], left_out=left_out))
        return Outcome(dict(self.records), tuple(missing))

    def _start_ready(self) -> None:
        ready = []
        unfinished = {step.id for step in self.waiting} | self.running.keys()
        for step in list(self.waiting):
            if not unfinished.isdisjoint((*step.depends_on(), *step.after)):
                continue
            if self._is_possible(step):
                ready.append(step)
            else:
                self.waiting.remove(step)
                unfinished.remove(step.id)
        for step, threads in self._fitting(ready):
            self.waiting.remove(step)
            self._start(step, threads)

    def _is_possible(self, step: Step) -> bool:
        blocked = [name for name in step.needs if name in self.causes]
        lacks = graph.lacking(step, self.records.get(step.id))
        if step.uses and all(name in self.causes for name in lacks):
            if (record := self._usable(step)) and not blocked:
                self.watch.ended(step, record)
                return False  # nothing to add to what it has
            blocked += [name for name in step.uses if name in self.causes]
        if not blocked:
            return True
        self.causes[step.id] = set().union(*(self.causes[name] for name in blocked))
        self.watch.ended(step, None)
        return False

    def _usable(self, step: Step) -> StepRecord | None:
        record = self.records.get(step.id)
        return record if record and record.has_files() else None

    def _fitting(self, ready: Sequence[Step]) -> list[tuple[Step, int]]:
        """Return steps that fit beside those that run, each with its threads.

        The threads of all never exceed the cores: llama.cpp's wait for each other in a spin.
        """
        capacity = self.capacity
        cores = capacity.cores - sum(threads for _, threads, _ in self.running.values())
        memory = capacity.memory_bytes - sum(s.memory_bytes for s, _, _ in self.running.values())
        places = min(capacity.jobs - len(self.running), cores // max(1, capacity.threads))
        places = places if self.running else max(1, places)
        chosen: list[Step] = []
        for step in ready:
            fits = step.memory_bytes <= memory or not (self.running or chosen)
            if fits and len(chosen) < places:
                chosen.append(step)
                memory -= step.memory_bytes
        fitting = []
        for i, step in enumerate(chosen):
            share = capacity.threads or max(1, cores // (len(chosen) - i))
            threads = min(share, max(1, step.cores))
            cores -= threads
            fitting.append((step, threads))
        return fitting

    def _start(self, step: Step, threads: int) -> None:
        results = {
            name: self.records[name].result
            for name in (*step.depends_on(), *step.after)
            if name in self.records and name not in self.causes  # then its files may be gone
        }
        turn = Turn(threads, self.watch.progress(step), results)
        if record := self._usable(step):
            turn = replace(turn, before=record.result, parts=record.parts, before_s=record.seconds)
        thread = threading.Thread(target=self._work, args=(step, turn), name=step.id)
        self.running[step.id] = (step, threads, thread)
        self.watch.began(step, threads)
        with process.interrupts_held():
            thread.start()

    def _work(self, step: Step, turn: Turn) -> None:
        began = time.monotonic()
        outcome: StepRecord | BaseException
        try:
            with interrupt.interruptible(self._stop):
                result = dict(step.run(turn))
            parts = tuple(n for n in step.uses if n in turn.results or n in turn.parts)
            seconds = turn.before_s + time.monotonic() - began
            outcome = StepRecord(self.keys[step.id], parts, result, seconds)
        except BaseException as error:
            outcome = error
        self._ended.put((step, outcome))

    def _wait(self) -> None:
        """Wait until a step ends; raise KeyboardInterrupt if it was stopped."""
        while True:
            interrupt.check()
            with contextlib.suppress(queue.Empty):
                step, outcome = self._ended.get(timeout=1.0)
                break
        del self.running[step.id]
        if isinstance(outcome, StepRecord):
            if not step.is_cleanup:
                self.save(step.id, outcome)
            self.records[step.id] = outcome
            self.watch.ended(step, outcome)
        elif not isinstance(outcome, Exception):  # it was stopped
            self.watch.ended(step, None)
            raise KeyboardInterrupt
        else:
            self.failures[step.id] = self._missing(step, outcome)
            self.causes[step.id] = {step.id}
            self.watch.ended(step, self.failures[step.id])
            self._leave_idle()

    def _leave_idle(self) -> None:
        """Leave out what only steps need that cannot run any more."""
        impossible = set(self.causes)
        for step in self.steps:
            if not impossible.isdisjoint(step.needs):
                impossible.add(step.id)
        possible = [step for step in self.steps if step.id not in impossible]
        needed = {step.id for step in graph.to_run(possible, self.records)} | impossible
        for step in [step for step in self.waiting if step.id not in needed]:
            self.waiting.remove(step)
            self.watch.ended(step, self.records.get(step.id))

    def _missing(self, step: Step, error: Exception) -> Missing:
        """Return why a step failed; a bug's traceback goes into a log."""
        if isinstance(error, OSError):
            error = os_error(error, self.logs)
        if isinstance(error, ImatrixLabError):
            why = f"{error.what} ({error.where})" if error.where else error.what
            return Missing(step.what, why, error.fix or "", ())
        log = self.logs / f"{step.id}.log"
        with contextlib.suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return Missing(step.what, f"a bug: {type(error).__name__}: {error}", f"see {log}", ())

    def _interrupt(self) -> None:
        """Interrupt what runs, and wait until it has ended, whatever signals come."""
        self._stop.set()
        while any(thread.is_alive() for _, _, thread in self.running.values()):
            with contextlib.suppress(KeyboardInterrupt):
                for _, _, thread in self.running.values():
                    if thread.is_alive():
                        thread.join()
        while not self._ended.empty():
            step, outcome = self._ended.get()
            if isinstance(outcome, StepRecord) and not step.is_cleanup:  # done just before
                with contextlib.suppress(ImatrixLabError, OSError):
                    self.save(step.id, outcome)
