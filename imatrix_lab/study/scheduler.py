"""Running steps side by side, within cores and memory; a failure stops what stands on it alone."""

import contextlib
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from imatrix_lab.core import interrupt, process
from imatrix_lab.core.files import disk_error
from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.study.graph import Failure, Record, Step, Turn, finished, keys, lacking, to_run


@dataclass(frozen=True)
class Limits:
    """What may be used at a time.

    Attributes
    ----------
    threads : of each step; 0 shares the cores among the steps that can run.
    """

    jobs: int
    cores: int
    memory_bytes: int
    threads: int = 0


class Watcher(Protocol):
    """Who hears how far the steps are; called from the thread that runs them all."""

    def progress(self, step: Step) -> Progress:
        """Return where a step reports; it does so from a thread of its own."""

    def began(self, step: Step, threads: int) -> None:
        """A step begins."""

    def ended(self, step: Step, outcome: Record | Failure | None) -> None:
        """A step has ended: done, failed, or (None) left out or stopped."""


@dataclass(frozen=True)
class Outcome:
    """Records of everything that was done, of this run or an earlier one; what failed.

    The files of a record may be gone: what was found out with them stays true.
    """

    records: dict[str, Record]
    failures: tuple[Failure, ...]


def run(
    steps: Sequence[Step],
    records: Mapping[str, Record],
    limits: Limits,
    watch: Watcher,
    keep: Callable[[str, Record], None],
    logs: Path,
) -> Outcome:
    """Run what is not done yet.

    No step is left running when this returns or raises: an interrupt reaches them all.

    Parameters
    ----------
    keep : stores a record; called as soon as its step is done.
    logs : folder for the tracebacks of bugs.
    """
    graph = _Graph(steps, records, limits, watch, keep, logs)
    try:
        while graph.waiting or graph.running:
            graph.start()
            if graph.running:
                graph.take()
    except BaseException:
        graph.stop()
        raise
    return graph.outcome()


@dataclass(frozen=True)
class _Stopped:
    """A step was interrupted."""


class _Graph:
    def __init__(
        self, steps: Sequence[Step], records: Mapping[str, Record], limits: Limits,
        watch: Watcher, keep: Callable[[str, Record], None], logs: Path,
    ):  # fmt: skip
        self.limits, self.watch, self.keep, self.logs = limits, watch, keep, logs
        self.keys = keys(steps)
        self.records = finished(steps, records)
        self.waiting = to_run(steps, self.records)
        self.running: dict[str, tuple[Step, int, threading.Thread]] = {}
        self.failures: dict[str, Failure] = {}
        self.causes: dict[str, set[str]] = {}
        """Of each step that failed or was left out, the steps at fault."""
        self._asked = threading.Event()
        self._ended: queue.SimpleQueue[tuple[Step, Record | Exception | _Stopped]] = (
            queue.SimpleQueue()
        )

    # -- which

    def start(self) -> None:
        """Leave out what cannot run any more, and start what can run now."""
        ready = []
        unfinished = {one.id for one in self.waiting} | self.running.keys()
        for step in list(self.waiting):
            if not unfinished.isdisjoint((*step.on(), *step.after)):
                continue
            if self._is_possible(step):
                ready.append(step)
            else:
                self.waiting.remove(step)
                unfinished.remove(step.id)
        for step, threads in self._that_fit(ready):
            self.waiting.remove(step)
            self._start(step, threads)

    def _is_possible(self, step: Step) -> bool:
        """Return whether a step can run, after all that it waits for has ended."""
        blocked = [one for one in step.needs if one in self.causes]
        new = [one for one in lacking(step, self.records.get(step.id)) if one not in self.causes]
        if step.uses and not new:
            if self._is_there(step) and not blocked:
                self.watch.ended(step, self.records[step.id])
                return False  # nothing to add to what it has
            blocked += [one for one in step.uses if one in self.causes]
        if not blocked:
            return True
        self.causes[step.id] = set().union(*(self.causes[one] for one in blocked))
        for fault in self.causes[step.id]:
            failure = self.failures[fault]
            self.failures[fault] = replace(failure, left_out=(*failure.left_out, step))
        self.watch.ended(step, None)
        return False

    def _is_there(self, step: Step) -> bool:
        """Whether a step has a record, and the files of it."""
        return step.id in self.records and self.records[step.id].is_there()

    def _that_fit(self, ready: Sequence[Step]) -> list[tuple[Step, int]]:
        """Return steps that fit beside those that run, each with its threads.

        The threads of all never exceed the cores: llama.cpp's wait for each other in a spin.
        """
        limits = self.limits
        cores = limits.cores - sum(threads for _, threads, _ in self.running.values())
        memory = limits.memory_bytes - sum(s.memory_bytes for s, _, _ in self.running.values())
        places = min(limits.jobs - len(self.running), cores // max(1, limits.threads))
        if not self.running:
            places = max(1, places)
        chosen: list[Step] = []
        for step in ready:
            fits = step.memory_bytes <= memory or not (self.running or chosen)
            if fits and len(chosen) < places:
                chosen.append(step)
                memory -= step.memory_bytes
        found = []
        for i, step in enumerate(chosen):
            share = limits.threads or max(1, cores // (len(chosen) - i))
            threads = min(share, max(1, step.cores))
            cores -= threads
            found.append((step, threads))
        return found

    # -- how

    def _start(self, step: Step, threads: int) -> None:
        usable = self.records[step.id] if self._is_there(step) else None
        found = {
            one: self.records[one].result
            for one in (*step.on(), *step.after)
            if one in self.records and one not in self.causes  # then its files may be gone
        }
        turn = Turn(
            threads, self.watch.progress(step), found,
            usable.result if usable else {}, usable.parts if usable else (),
            usable.seconds if usable else 0.0,
        )  # fmt: skip
        thread = threading.Thread(target=self._work, args=(step, turn), name=step.id)
        self.running[step.id] = (step, threads, thread)
        self.watch.began(step, threads)
        with process.interrupts_held():
            thread.start()

    def _work(self, step: Step, turn: Turn) -> None:
        began = time.monotonic()
        outcome: Record | Exception | _Stopped
        try:
            with interrupt.interruptible(self._asked):
                result = dict(step.run(turn))
            parts = tuple(one for one in step.uses if one in turn.found or one in turn.parts)
            seconds = turn.before_s + time.monotonic() - began
            outcome = Record(self.keys[step.id], parts, result, seconds)
        except Exception as error:
            outcome = error
        except BaseException:
            outcome = _Stopped()
        self._ended.put((step, outcome))

    def take(self) -> None:
        """Wait until a step ends, and take note of how.

        Raises
        ------
        KeyboardInterrupt : it was stopped.
        """
        while True:
            interrupt.check()
            with contextlib.suppress(queue.Empty):
                step, outcome = self._ended.get(timeout=1.0)
                break
        del self.running[step.id]
        if isinstance(outcome, _Stopped):
            self.watch.ended(step, None)
            raise KeyboardInterrupt
        if isinstance(outcome, Record):
            if not step.is_tidying:
                self.keep(step.id, outcome)
            self.records[step.id] = outcome
            self.watch.ended(step, outcome)
        else:
            self.failures[step.id] = self._failure(step, outcome)
            self.causes[step.id] = {step.id}
            self.watch.ended(step, self.failures[step.id])

    def _failure(self, step: Step, error: Exception) -> Failure:
        """Return a failure in words; a bug's traceback goes into a log."""
        if isinstance(error, OSError):
            error = disk_error(error, self.logs)
        if isinstance(error, ImatrixLabError):
            why = f"{error.what} ({error.where})" if error.where else error.what
            return Failure(step, why, error.fix or "")
        log = self.logs / f"{step.id}.log"
        with contextlib.suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return Failure(step, f"a bug: {type(error).__name__}: {error}", f"see {log}")

    def stop(self) -> None:
        """Interrupt what runs, and wait until it has ended, whatever signals come."""
        self._asked.set()
        while True:
            try:
                for _, _, thread in self.running.values():
                    if thread.ident is not None:
                        thread.join()
                break
            except KeyboardInterrupt:
                continue
        while not self._ended.empty():
            step, outcome = self._ended.get()
            if isinstance(outcome, Record) and not step.is_tidying:  # it was done just before
                with contextlib.suppress(ImatrixLabError, OSError):
                    self.keep(step.id, outcome)

    def outcome(self) -> Outcome:
        """Return what there is now."""
        return Outcome(dict(self.records), tuple(self.failures.values()))
