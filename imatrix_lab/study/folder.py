"""A study's folder: its recipe, records of finished steps, status, results.

recipe.toml          a copy
status.json          progress, written by the process that runs it
steps/<step>.json    a record of each finished step
scores/ items/       records of tokens and items
imatrix/ quants/     importance matrices; quants only with keep = "all"
logs/                tracebacks of bugs
work/                temporary files
results.json report.html report.md
"""

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from imatrix_lab.core import config, lease
from imatrix_lab.core.files import canonical_json, disk_error, from_json, left_of, write_whole
from imatrix_lab.core.outputs import check_folder
from imatrix_lab.errors import UsageError
from imatrix_lab.report import results
from imatrix_lab.study.graph import StepRecord
from imatrix_lab.study.recipe import Limits, Recipe, load

STUDIES = Path("studies")
RECIPE, STATUS = "recipe.toml", "status.json"
LOCK_WAIT_S = 1.0
RUNNING, STOPPED = "running", "stopped"  # states of a study, and of a step
_START = "imatrix-lab study run recipes/quick-nb.toml"


@dataclass(frozen=True)
class Folder:
    """Where a study's files are."""

    path: Path

    @classmethod
    def for_recipe(cls, recipe: Recipe, out: Path | None) -> "Folder":
        """Return `out`, or the folder under studies/ that has the recipe's name."""
        return cls((out or STUDIES / recipe.name).absolute())

    @classmethod
    def newest(cls) -> "Folder":
        """Return the study under studies/ that was changed last."""
        paths = [path.parent for path in STUDIES.glob(f"*/{RECIPE}")]
        if not paths:
            raise UsageError("there is no study yet", where=STUDIES, fix=_START)
        names = (RECIPE, STATUS, results.FILE)
        files = (path / name for path in paths for name in names if (path / name).exists())
        return cls(max(files, key=lambda file: file.stat().st_mtime_ns).parent)

    def of(self, *names: str) -> Path:
        """Return a path in it."""
        return self.path.joinpath(*names)

    def check(self, recipe: Path) -> None:
        """Raise UsageError for a folder with anything but a study of this recipe."""
        copy = self.of(RECIPE)
        if copy.exists() and self.of("steps").is_dir():
            old = _determining(load(copy, recipe.parent))
            if field := _difference(old, _determining(load(recipe))):
                problem = f"this is the study of another recipe: {field} differs"
                command = f"imatrix-lab study run {shlex.quote(str(recipe))} --out ANOTHER_FOLDER"
                fix = f"{command}; or remove this one"
                raise UsageError(problem, where=self.path, fix=fix)
        elif self.path.exists() and (not self.path.is_dir() or self._has_other_files()):
            fix = "--out ANOTHER_FOLDER"
            raise UsageError("this is not an empty folder", where=self.path, fix=fix)
        else:
            check_folder(self.path)

    def begin(self, recipe: Path) -> None:
        """Make the folder for a recipe and copy it, or refuse a folder with anything else."""
        text = recipe.read_bytes().decode()
        self.check(recipe)
        try:
            self.of("steps").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, self.path) from error
        write_whole(self.of(RECIPE), text)

    def _has_other_files(self) -> bool:
        """Return whether there is more than what a run may leave that is killed in `begin`."""
        left = left_of(self.of(RECIPE))
        return any(
            any(p.iterdir()) if p.name == "steps" else p not in left for p in self.path.iterdir()
        )

    def recipe(self) -> Recipe:
        """Return its recipe, whose files are relative to where the recipe was."""
        self._require_study()
        original = self.status().get("recipe_folder")
        return load(self.of(RECIPE), Path(original) if original else None)

    def _require_study(self) -> None:
        if not self.of(RECIPE).exists():
            raise UsageError("there is no study here", where=self.path, fix=_START)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder, or raise `UsageError`: one process at a time runs a study."""
        try:
            with lease.lock(self.of(".lock")).acquire(timeout=LOCK_WAIT_S):
                yield
        except filelock.Timeout:
            problem = f"process {self.status().get('pid')} is running this study"
            fix = f"imatrix-lab study status {shlex.quote(str(self.path))}"
            raise UsageError(problem, where=self.path, fix=fix) from None

    def status(self) -> dict[str, Any]:
        """Return the status as last written; empty if it cannot be read."""
        try:
            return dict(from_json(self.of(STATUS).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def current_status(self) -> dict[str, Any]:
        """Return the status, with "stopped" for what was running in a process that is gone."""
        status = self.status()
        if "steps" not in status:
            self._require_study()
            fix = f"imatrix-lab study resume {shlex.quote(str(self.path))}"
            raise UsageError("no step of a study has begun here", where=self.path, fix=fix)
        if status["state"] == RUNNING:
            lock = lease.lock(self.of(".lock"))
            with (
                contextlib.suppress(filelock.Timeout),
                lock.acquire(timeout=0),
            ):  # no process runs it
                for step in (status, *status["steps"].values()):
                    if step["state"] == RUNNING:
                        step["state"] = STOPPED
        return status

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Write the status."""
        write_whole(self.of(STATUS), canonical_json(config.plain(status)))

    def records(self) -> dict[str, StepRecord]:
        """Return the records of steps; those that cannot be read are skipped."""
        records = {}
        for path in self.of("steps").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, UsageError):
                records[path.stem] = config.build(StepRecord, from_json(path.read_bytes()), path)
        return records

    def write_record(self, step: str, record: StepRecord) -> None:
        """Write the record of a step."""
        self.of("steps").mkdir(exist_ok=True)
        write_whole(self.of("steps", f"{step}.json"), canonical_json(config.plain(record)))


def _determining(recipe: Recipe) -> Recipe:
    """Return a recipe without what changes no number; [reduced] is laid over it already."""
    reduced = {k: v for k, v in recipe.reduced.items() if k not in ("limits", "keep")}
    return dataclasses.replace(recipe, limits=Limits(), keep="", reduced=reduced)


def _difference(a: Any, b: Any) -> str:
    """Return the name of the first field in which two dataclasses differ; empty without one."""
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if x != y:
            nested = dataclasses.is_dataclass(x)
            return f"{field.name}.{_difference(x, y)}" if nested else field.name
    return ""
