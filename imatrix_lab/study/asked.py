"""The tasks of a recipe: what steps call them, and what determines their items."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from imatrix_lab import typed
from imatrix_lab.recipe import Recipe, Task
from imatrix_lab.store import sha256_file
from imatrix_lab.study import check
from imatrix_lab.tasks import definition as definitions


def names(recipe: Recipe) -> dict[Task, str]:
    """Return a name for each task; one that is there twice has its languages in it."""
    stems = {task: Path(task.name).stem for task in recipe.tasks}
    n_of = Counter(stems.values())
    return {
        task: "-".join((stem, *check.languages_of(task, recipe))) if n_of[stem] > 1 else stem
        for task, stem in stems.items()
    }


def inputs(task: Task, languages: tuple[str, ...]) -> dict[str, object]:
    """Return what determines a task's items, wherever its files lie."""
    definition = definitions.get(task.name)
    return {
        **typed.plain(task),
        "name": definition.name,
        "languages": list(languages),
        "definition_sha256": sha256_file(definition.path),
        "data": _sha256s(Path(task.data)) if task.data else {},
    }


def _sha256s(data: Path) -> dict[str, str]:
    """Return the sha256 of a file, or of those in a folder, by name."""
    if data.is_file():
        return {data.name: sha256_file(data)}
    found = sorted(path for path in data.rglob("*") if path.is_file())
    return {path.relative_to(data).as_posix(): sha256_file(path) for path in found}
