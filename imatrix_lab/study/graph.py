"""Steps that depend on each other, and which of them have to run.

A step that ran leaves a record. What has to run is decided from the targets backwards: a product
whose file is gone is made again only if a step that is not done needs it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imatrix_lab.core.progress import Progress
from imatrix_lab.core.store import fingerprint

FILES = "files"  # in a result: the files that the step made


@dataclass(frozen=True)
class Turn:
    """What a step is given when it runs: results of the steps it depends on or comes after.

    `before` is its own result of an earlier run that lacked some of the steps it uses, else empty;
    `parts` are the steps in it, `before_s` that run's seconds.
    """

    threads: int
    progress: Progress
    results: Mapping[str, dict[str, Any]]
    before: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    before_s: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step; the steps it depends on come before it in the list of steps.

    Attributes
    ----------
    run : does it; returns facts as JSON values, files under `FILES`.
    inputs : what determines its result, besides the steps it depends on.
    needs : steps without which it cannot run.
    uses : steps whose products it takes where they were made, at least one; those that are made
        in a later run are added to its result.
    after : steps that have ended before it starts, whether they failed or not.
    is_target : run for itself, not only where another step needs it.
    is_cleanup : run each time, and not recorded.
    part_of : the step that does itself what of it fails here.
    cost : tokens through the model, roughly: its share of the time left.
    """

    id: str
    kind: str
    what: str
    run: Callable[[Turn], Mapping[str, Any]]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    is_target: bool = False
    is_cleanup: bool = False
    cost: float = 1.0
    cores: int = 1
    memory_bytes: int = 0
    part_of: str = ""

    def depends_on(self) -> tuple[str, ...]:
        """Return the steps whose results it takes."""
        return (*self.needs, *self.uses)


@dataclass(frozen=True)
class StepRecord:
    """What a step that ran leaves: the fingerprint of what determined its result, and that.

    `parts` are, of the steps it uses, those whose products are in it.
    """

    key: str
    parts: tuple[str, ...]
    result: dict[str, Any]
    seconds: float

    def has_files(self) -> bool:
        """Whether all of its files exist."""
        return all(Path(file).exists() for file in self.result.get(FILES, ()))


Steps = Sequence[Step]
Records = Mapping[str, StepRecord]


def keys(steps: Steps) -> dict[str, str]:
    """Return the key of each step: its own inputs, and the keys of the steps it depends on."""
    keys: dict[str, str] = {}
    for step in steps:
        on = [keys[name] for name in step.depends_on()]
        keys[step.id] = fingerprint(step.kind, {"step": step.id, "inputs": step.inputs, "on": on})
    return keys


def finished(steps: Steps, records: Records) -> dict[str, StepRecord]:
    """Return the records of exactly these steps; files of some may be gone."""
    current = keys(steps)
    return {step: record for step, record in records.items() if record.key == current.get(step)}


def lacking(step: Step, record: StepRecord | None) -> tuple[str, ...]:
    """Return the steps it uses whose products are not in its record."""
    included = record.parts if record and record.has_files() else ()
    return tuple(name for name in step.uses if name not in included)


def to_run(steps: Steps, done: Records) -> list[Step]:
    """Return the steps that have to run, in order, where `done` is what `finished` returns."""
    needed: set[str] = set()
    chosen = []
    for step in reversed(steps):
        record = done.get(step.id)
        is_done = record is not None and record.has_files() and not lacking(step, record)
        if step.is_cleanup or (not is_done and (step.is_target or step.id in needed)):
            chosen.append(step)
            needed.update(step.needs, lacking(step, record))
    return chosen[::-1]
