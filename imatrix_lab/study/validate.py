"""What only the stages know of a recipe: checked before any work, so that no hours are lost."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from imatrix_lab.compare import design
from imatrix_lab.core import config
from imatrix_lab.core.config import nearest
from imatrix_lab.core.files import sha256_file
from imatrix_lab.corpus import mixture
from imatrix_lab.corpus.mixture import Mixture
from imatrix_lab.errors import UsageError
from imatrix_lab.imatrix import merge
from imatrix_lab.llamacpp import toolchain
from imatrix_lab.pipeline import score
from imatrix_lab.stats.metrics import METRICS
from imatrix_lab.study.recipe import DEMO, NONE, Recipe, Task
from imatrix_lab.tasks import definition as definitions
from imatrix_lab.tasks import load, locale
from imatrix_lab.tasks.definition import VARIANTS


def names(recipe: Recipe) -> dict[Task, str]:
    """Return a name for each task; one that is there twice has its languages in it."""
    stems = {task: Path(task.name).stem for task in recipe.tasks}
    n_of = Counter(stems.values())
    return {
        task: "-".join((stem, *languages_of(task, recipe))) if n_of[stem] > 1 else stem
        for task, stem in stems.items()
    }


def inputs(task: Task, languages: tuple[str, ...]) -> dict[str, object]:
    """Return what determines a task's items, wherever its files lie."""
    definition = definitions.get(task.name)
    return {
        **config.plain(task),
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


ITEM_METRIC = "score"


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be carried out as it stands.

    Raises
    ------
    UsageError : a name that a stage does not know, a file that is not there, a baseline that is
        no calibration.
    """
    metrics = [key for key in METRICS if key != ITEM_METRIC]
    comparison = recipe.comparison
    if design.parse_family(comparison.family)[0] != "calib":
        raise UsageError(
            f"comparison.family: {comparison.family!r} does not compare calibrations",
            fix="calibxlangxtype",
        )
    words = [
        ("calibration.merge_by", recipe.calibration.merge_by, merge.BY),
        ("evaluation.protocol", recipe.evaluation.protocol, score.CONTEXT),
        ("comparison.adjust", comparison.adjust, design.ADJUSTMENTS),
        ("limits.backend", backend(recipe), toolchain.BACKENDS),
        *(("comparison.metrics", m, metrics) for m in comparison.metrics),
        *(("comparison.margins", m, METRICS) for m in comparison.margins),
        *(("variant", t.variant, VARIANTS) for t in recipe.tasks if t.variant),
    ]
    for key, word, known in words:
        if word not in known:
            raise UsageError(
                f"{key}: no {word!r}{nearest(word, known)}", fix=f"one of {', '.join(known)}"
            )
    _calibrations(recipe)
    for path in _files(recipe):
        if not path.exists():
            raise UsageError("the recipe names a file that is not there", where=path)
    _tasks(recipe)


def backend(recipe: Recipe) -> str:
    """Return the backend that is meant."""
    return recipe.limits.backend or toolchain.default_backend()


def mixtures(recipe: Recipe) -> dict[str, Mixture]:
    """Return the calibration texts but for none, by the word in the recipe.

    Raises
    ------
    UsageError : see `mixture.parse`.
    """
    return {word: mixture.parse(word) for word in recipe.calibration.texts if word != NONE}


def languages_of(task: Task, recipe: Recipe) -> tuple[str, ...]:
    """Return the languages in which a benchmark is run.

    Raises
    ------
    UsageError : no such benchmark; it has no such language, or we have no prompts in it.
    """
    found = definitions.get(task.name)
    data = Path(task.data) if task.data else None
    codes = task.languages
    if not codes:
        parts = [p for m in mixtures(recipe).values() for p in m.parts if p.language]
        there = locale.load_all()
        every = dict.fromkeys(p.language.code for p in parts if p.language)
        codes = tuple(c for c in every if load.has(found, c, data) and c in there)
        if not codes:
            raise UsageError(
                f"{found.name} is in no language of the calibration",
                fix='languages = ["en"] in its [[tasks]]',
            )
    for code in codes:
        if not load.has(found, code, data):
            load.own_code(found, code)  # says what there is
        locale.get(code)
    return codes


def _calibrations(recipe: Recipe) -> None:
    """Refuse calibrations that are not different ones, or a baseline that is none of them."""
    labels: dict[str, str] = {}
    for word, found in mixtures(recipe).items():
        if twin := labels.get(found.label):
            raise UsageError(f"calibration.texts: {twin!r} and {word!r} are the same")
        labels[found.label] = word
    if recipe.calibration.pooled and recipe.calibration.samples == 1:
        raise UsageError("calibration.pooled: one sample alone is no pool", fix="samples = 2")
    baseline, texts = recipe.comparison.baseline, recipe.calibration.texts
    if baseline and baseline not in texts:
        raise UsageError(
            f"comparison.baseline: {baseline!r} is no calibration{nearest(baseline, texts)}",
            fix=f"one of {', '.join(texts)}",
        )


def _tasks(recipe: Recipe) -> None:
    """Refuse a task without a language, or twice in one: records are told apart by the two."""
    seen = set()
    for task in recipe.tasks:
        name = definitions.get(task.name).name
        for code in languages_of(task, recipe):
            if (name, code) in seen:
                raise UsageError(
                    f"tasks: {name} is there twice in {code!r}",
                    fix="languages in each of its [[tasks]], none of them in two",
                )
            seen.add((name, code))


def _files(recipe: Recipe) -> Iterator[Path]:
    """Yield the files that the recipe names."""
    yield from (Path(m) for m in recipe.models if m != DEMO and not m.startswith("hf:"))
    yield from (Path(text.partition("=")[2]) for text in recipe.evaluation.texts if "=" in text)
    yield from (Path(task.data) for task in recipe.tasks if task.data)
