"""Steps that stand on each other, and which of them have to run.

A step that ran leaves a record. What has to run is judged from the targets backwards: a product
that is gone is made again only if something that is not done needs it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imatrix_lab.core.progress import Progress
from imatrix_lab.core.store import fingerprint

FILES = "files"
"""In a result: the files that the step made."""


@dataclass(frozen=True)
class Turn:
    """What a step is given when it runs.

    Attributes
    ----------
    found : step -> result, of what it stands on and comes after.
    before : its own result of an earlier run, which lacked some of what it uses; else empty.
    parts : of what it uses, the steps that are in `before`.
    before_s : seconds that took.
    """

    threads: int
    progress: Progress
    found: Mapping[str, dict[str, Any]]
    before: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    before_s: float = 0.0


Run = Callable[[Turn], Mapping[str, Any]]


@dataclass(frozen=True)
class Step:
    """One step; what it stands on comes before it in the list of steps.

    Attributes
    ----------
    id : fit for a file's name.
    what : in words.
    run : does it; returns facts as JSON values, files under `FILES`.
    inputs : what determines its result, besides what it stands on.
    needs : steps without which it cannot run.
    uses : steps whose products it takes as far as there are any, but one at least; a product
        that comes late is added.
    after : steps that have ended before, however they ended.
    is_target : wanted for itself, not only where another step lacks it.
    is_tidying : run each time, and not recorded.
    cost : tokens through the model, roughly: its share of the time left.
    cores : the most it can use.
    memory_bytes : about what it takes.
    """

    id: str
    kind: str
    what: str
    run: Run
    inputs: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    is_target: bool = False
    is_tidying: bool = False
    cost: float = 1.0
    cores: int = 1
    memory_bytes: int = 0

    def on(self) -> tuple[str, ...]:
        """Return the steps it stands on."""
        return (*self.needs, *self.uses)


@dataclass(frozen=True)
class Record:
    """What a step that ran left.

    Attributes
    ----------
    key : fingerprint of what determined the result.
    parts : of the steps it uses, those whose products are in it.
    seconds : what it took.
    """

    key: str
    parts: tuple[str, ...]
    result: dict[str, Any]
    seconds: float

    def is_there(self) -> bool:
        """Whether all of its files are."""
        return all(Path(file).exists() for file in self.result.get(FILES, ()))


@dataclass(frozen=True)
class Failure:
    """A step that failed, why, what mends it, and the steps that were left out for it."""

    step: Step
    why: str
    fix: str
    left_out: tuple[Step, ...] = ()


def keys(steps: Sequence[Step]) -> dict[str, str]:
    """Return the key of each step: its own inputs, and the keys of what it stands on."""
    found: dict[str, str] = {}
    for step in steps:
        on = [found[one] for one in step.on()]
        found[step.id] = fingerprint(step.kind, {"step": step.id, "inputs": step.inputs, "on": on})
    return found


def finished(steps: Sequence[Step], records: Mapping[str, Record]) -> dict[str, Record]:
    """Return the records that are of these very steps, some of whose files may be gone."""
    return {
        step: records[step]
        for step, key in keys(steps).items()
        if step in records and records[step].key == key
    }


def lacking(step: Step, record: Record | None) -> tuple[str, ...]:
    """Return the steps it uses whose products are not in its record."""
    there = record.parts if record and record.is_there() else ()
    return tuple(one for one in step.uses if one not in there)


def to_run(steps: Sequence[Step], done: Mapping[str, Record]) -> list[Step]:
    """Return the steps that have to run, in order.

    Parameters
    ----------
    done : see `finished`.
    """
    wanted: set[str] = set()
    chosen = []
    for step in reversed(steps):
        record = done.get(step.id)
        is_done = record is not None and record.is_there() and not lacking(step, record)
        if step.is_tidying or (not is_done and (step.is_target or step.id in wanted)):
            chosen.append(step)
            wanted.update(step.needs, lacking(step, record))
    return chosen[::-1]
