"""The benchmarks of a recipe: their languages, names in steps, and what determines their items."""

from collections import Counter
from pathlib import Path

from imatrix_lab.core import config
from imatrix_lab.core.files import sha256_file
from imatrix_lab.errors import UsageError
from imatrix_lab.study.calibrations import mixtures
from imatrix_lab.study.recipe import Recipe, Task
from imatrix_lab.tasks import definition, load
from imatrix_lab.tasks.locale import get_locale, load_locales


def names(recipe: Recipe) -> dict[Task, str]:
    """Return a name for each task; one that is listed twice has its languages in it."""
    stems = {task: Path(task.name).stem for task in recipe.tasks}
    counts = Counter(stems.values())
    return {
        task: "-".join((stem, *languages_of(task, recipe))) if counts[stem] > 1 else stem
        for task, stem in stems.items()
    }


def languages_of(task: Task, recipe: Recipe) -> tuple[str, ...]:
    """Return the languages in which a benchmark is run.

    Raises UsageError: no such benchmark; it lacks the language, or there are no prompts in it.
    """
    definition_ = definition.get(task.name)
    data = Path(task.data) if task.data else None
    codes = task.languages
    if not codes:
        parts = [part for text in mixtures(recipe).values() for part in text.parts]
        calibrated = dict.fromkeys(part.language.code for part in parts if part.language)
        prompts = load_locales()
        codes = tuple(c for c in calibrated if load.has(definition_, c, data) and c in prompts)
        if not codes:
            problem = f"{definition_.name} has none of the calibration's languages"
            raise UsageError(problem, fix='languages = ["en"] in its [[tasks]]')
    for code in codes:
        if not load.has(definition_, code, data):
            load.own_code(definition_, code)  # raises, with the languages that it has
        get_locale(code)
    return codes


def inputs(task: Task, languages: tuple[str, ...]) -> dict[str, object]:
    """Return what determines a task's items, wherever its files lie."""
    definition_ = definition.get(task.name)
    return {
        **config.plain(task),
        "name": definition_.name,
        "languages": list(languages),
        "definition_sha256": sha256_file(definition_.path),
        "data": _sha256s(Path(task.data)) if task.data else {},
    }


def _sha256s(data: Path) -> dict[str, str]:
    if data.is_file():
        return {data.name: sha256_file(data)}
    files = sorted(path for path in data.rglob("*") if path.is_file())
    return {path.relative_to(data).as_posix(): sha256_file(path) for path in files}
