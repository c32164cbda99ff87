"""A study's folder: its recipe, records of the steps that are done, how far it is, results.

recipe.toml          a copy
status.json          how far it is, written by the process that runs it
steps/<step>.json    a record of each step that is done
scores/ items/       records of tokens and items
imatrix/ quants/     importance matrices; quants only with keep = "all"
logs/                tracebacks of bugs
work/                what is there for a while only
results.json report.html report.md
"""

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from imatrix_lab.core import config
from imatrix_lab.core.files import canonical_json, disk_error, write_whole
from imatrix_lab.errors import UsageError
from imatrix_lab.report import results
from imatrix_lab.study import recipe as recipes
from imatrix_lab.study.graph import Record
from imatrix_lab.study.recipe import Limits, Recipe

STUDIES = Path("studies")
RECIPE, STATUS = "recipe.toml", "status.json"
LOCK_WAIT_S = 1.0
RUNNING, STOPPED = "running", "stopped"
"""States of a study, and of a step."""
_START = "imatrix-lab study run recipes/quick-nb.toml"


@dataclass(frozen=True)
class Folder:
    """Where a study's files are."""

    path: Path

    def of(self, *names: str) -> Path:
        """Return a path in it."""
        return self.path.joinpath(*names)

    def begin(self, recipe: Path) -> None:
        """Make the folder for a recipe, or see that it is this recipe's and take it as it is now.

        Raises
        ------
        UsageError : it is another recipe's, or something else's.
        """
        there, ours = self.of(RECIPE), recipe.read_bytes()
        if there.exists() and self.of("steps").is_dir():
            old = recipes.load(there, recipe.parent)
            if differs := _difference(_determining(old), _determining(recipes.load(recipe))):
                raise UsageError(
                    f"this is the study of another recipe: {differs} differs", where=self.path,
                    fix=f"imatrix-lab study run {shlex.quote(str(recipe))} --out ANOTHER_FOLDER;"
                    " or remove this one",
                )  # fmt: skip
            write_whole(there, ours.decode())
            return
        if self.path.exists() and (not self.path.is_dir() or self._has_something()):
            raise UsageError(
                "there is something else here", where=self.path, fix="--out ANOTHER_FOLDER"
            )
        try:
            self.of("steps").mkdir(parents=True)
        except OSError as error:
            raise disk_error(error, self.path) from error
        write_whole(there, ours.decode())

    def _has_something(self) -> bool:
        """Whether there are files, but for the begin of a folder of ours."""
        return any(p.name != "steps" or any(p.iterdir()) for p in self.path.iterdir())

    def recipe(self) -> Recipe:
        """Return its recipe, whose files are named from where the recipe was.

        Raises
        ------
        UsageError : there is no study here.
        """
        if not self.of(RECIPE).exists():
            raise UsageError("there is no study here", where=self.path, fix=_START)
        beside = self.status().get("recipe_folder")
        return recipes.load(self.of(RECIPE), Path(beside) if beside else None)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder: one process at a time runs a study.

        Raises
        ------
        UsageError : another process does.
        """
        try:
            with filelock.FileLock(self.of(".lock"), timeout=LOCK_WAIT_S):
                yield
        except filelock.Timeout:
            raise UsageError(
                f"process {self.status().get('pid')} is running this study", where=self.path,
                fix=f"imatrix-lab study status {shlex.quote(str(self.path))}",
            ) from None  # fmt: skip

    def is_held(self) -> bool:
        """Whether a process runs the study now."""
        try:
            with filelock.FileLock(self.of(".lock"), timeout=0):
                return False
        except filelock.Timeout:
            return True

    def status(self) -> dict[str, Any]:
        """Return what was last written of how far it is; nothing if that cannot be read."""
        try:
            return dict(json.loads(self.of(STATUS).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def now(self) -> dict[str, Any]:
        """Return how far it is; one whose process is gone was stopped.

        Raises
        ------
        UsageError : it has not begun.
        """
        told = self.status()
        if "steps" not in told:
            raise UsageError(
                "no steps of a study were begun here", where=self.path,
                fix=f"imatrix-lab study resume {shlex.quote(str(self.path))}",
            )  # fmt: skip
        if told["state"] == RUNNING and not self.is_held():
            steps = {
                name: {**step, "state": STOPPED} if step["state"] == RUNNING else step
                for name, step in told["steps"].items()
            }
            return {**told, "state": STOPPED, "steps": steps}
        return told

    def tell(self, status: Mapping[str, Any]) -> None:
        """Write how far it is."""
        write_whole(self.of(STATUS), canonical_json(config.plain(status)))

    def records(self) -> dict[str, Record]:
        """Return the records of steps; one that cannot be read is none."""
        found = {}
        for path in self.of("steps").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, UsageError):
                found[path.stem] = config.build(Record, json.loads(path.read_bytes()), path)
        return found

    def keep(self, step: str, record: Record) -> None:
        """Write the record of a step."""
        self.of("steps").mkdir(exist_ok=True)
        write_whole(self.of("steps", f"{step}.json"), canonical_json(config.plain(record)))


def _determining(recipe: Recipe) -> Recipe:
    """Return a recipe without what changes no number; `reduced` lies over the others already."""
    reduced = {k: v for k, v in recipe.reduced.items() if k not in ("limits", "keep")}
    return dataclasses.replace(recipe, limits=Limits(), keep="", reduced=reduced)


def _difference(a: Any, b: Any) -> str:
    """Return the first field in which two records of one kind differ; empty without one."""
    for name in (field.name for field in dataclasses.fields(a)):
        one, other = getattr(a, name), getattr(b, name)
        if one != other:
            inside = dataclasses.is_dataclass(one)
            return f"{name}.{_difference(one, other)}" if inside else name
    return ""


def newest() -> Folder:
    """Return the study that was worked on last.

    Raises
    ------
    UsageError : there is none.
    """
    found = [path.parent for path in STUDIES.glob(f"*/{RECIPE}")]
    if not found:
        raise UsageError("there is no study yet", where=STUDIES, fix=_START)
    return Folder(max(found, key=_last_told_ns))


def _last_told_ns(folder: Path) -> int:
    files = [folder / name for name in (RECIPE, STATUS, results.FILE)]
    return max(file.stat().st_mtime_ns for file in files if file.exists())
