"""Check before any work what only the stages know of a recipe, so that no hours are lost."""

from collections import Counter
from pathlib import Path

from imatrix_lab.compare import design
from imatrix_lab.core.config import nearest
from imatrix_lab.errors import UsageError
from imatrix_lab.imatrix import merge
from imatrix_lab.llamacpp import size_types, toolchain
from imatrix_lab.pipeline import allocate, score
from imatrix_lab.quantize import run
from imatrix_lab.stats.metrics import METRICS
from imatrix_lab.study import tasks, votes
from imatrix_lab.study.calibrations import calibrations, mixtures
from imatrix_lab.study.kinds import QUANTIZERS
from imatrix_lab.study.recipe import NONE, PLAIN, Recipe, is_remote
from imatrix_lab.tasks import definition
from imatrix_lab.types import ComputeOptions, Request


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be carried out as it stands, with a `UsageError`."""
    if design.parse_family(recipe.comparison.family)[0] != "calib":
        problem = f"comparison.family: {recipe.comparison.family!r} does not compare calibrations"
        raise UsageError(problem, fix="calibxlangxtype")
    _check_names(recipe)
    _check_calibrations(recipe)
    models = (model for model in recipe.models if not is_remote(model))
    texts = (text.partition("=")[2] for text in recipe.evaluation.texts)
    for file in (*models, *texts, *(task.data for task in recipe.tasks)):
        path = Path(file)
        if file and not path.exists():
            raise UsageError("the recipe names a file that does not exist", where=path)
    _check_tasks(recipe)
    _check_kinds(recipe)
    if recipe.preference.prompts:
        votes.chosen(recipe, calibrations(recipe))
        votes.inputs(recipe)
    for model in recipe.models:
        run.check_spec(model, recipe.types)
        compute = ComputeOptions(recipe.backend)
        allocate.check(Request("", recipe.types, model, recipe.calibration.tokens, Path(), compute))


def _check_names(recipe: Recipe) -> None:
    comparison = recipe.comparison
    text_metrics = [key for key in METRICS if key != "score"]
    names = [
        ("calibration.merge_by", recipe.calibration.merge_by, merge.BY),
        ("evaluation.protocol", recipe.evaluation.protocol, score.CONTEXT),
        ("comparison.adjust", comparison.adjust, design.ADJUSTMENTS),
        ("limits.backend", recipe.backend, toolchain.BACKENDS),
        *(("quantizers", name, QUANTIZERS) for name in recipe.quantizers),
        *(("comparison.metrics", metric, text_metrics) for metric in comparison.metrics),
        *(("comparison.margins", metric, METRICS) for metric in comparison.margins),
        *(("variant", t.variant, definition.VARIANTS) for t in recipe.tasks if t.variant),
    ]
    for key, name, known in names:
        if name not in known:
            problem = f"{key}: no {name!r}{nearest(name, known)}"
            raise UsageError(problem, fix=f"one of {', '.join(known)}")


def _check_calibrations(recipe: Recipe) -> None:
    labels: dict[str, str] = {}
    for text, mixture in mixtures(recipe).items():
        if twin := labels.get(mixture.label):
            raise UsageError(f"calibration.texts: {twin!r} and {text!r} are the same")
        labels[mixture.label] = text
    if recipe.calibration.pooled and recipe.calibration.samples == 1:
        raise UsageError("calibration.pooled needs more than one sample", fix="samples = 2")
    baseline, texts = recipe.comparison.baseline, recipe.calibration.texts
    if baseline and baseline not in texts:
        problem = f"comparison.baseline: {baseline!r} is not in calibration.texts"
        raise UsageError(f"{problem}{nearest(baseline, texts)}", fix=f"one of {', '.join(texts)}")


def _check_kinds(recipe: Recipe) -> None:
    """Refuse types that a quantizer cannot make, and `none` as what they are compared with."""
    quantizers = {name: QUANTIZERS[name] for name in recipe.quantizers}
    for quantizer in quantizers.values():
        quantizer.check(recipe.types)
    texts = recipe.calibration.texts
    if NONE in texts and PLAIN not in quantizers:
        what = f"{NONE!r} is llama-quantize without an imatrix, and quantizers has no {PLAIN!r}"
        raise UsageError(what, fix=f"add {PLAIN!r}, or leave {NONE!r} out of calibration.texts")
    needing = [*filter(size_types.is_size, recipe.types)]
    needing += [name for name, quantizer in quantizers.items() if quantizer.needs_text]
    if needing and (recipe.comparison.baseline or texts[0]) == NONE:
        what = f"{needing[0]} takes a calibration text, so that it has no baseline {NONE!r}"
        raise UsageError(what, fix="set comparison.baseline to a language of calibration.texts")


def _check_tasks(recipe: Recipe) -> None:
    """Refuse a task twice in one language: records are told apart by the two."""
    counts: Counter[tuple[str, str]] = Counter()
    for task in recipe.tasks:
        name = definition.get(task.name).name
        counts.update((name, code) for code in tasks.languages_of(task, recipe))
    for (name, code), n in counts.items():
        if n > 1:
            problem = f"tasks: {name} is listed twice in {code!r}"
            raise UsageError(problem, fix="give each of its [[tasks]] other languages")
