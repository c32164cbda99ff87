"""A study's TOML file as frozen dataclasses: the only definition of its keys.

Names that only a stage knows (mixtures, tasks, metrics) are checked by `validate.check`.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from imatrix_lab.core import config, paths
from imatrix_lab.core.paths import expanded
from imatrix_lab.corpus import languages
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import programs, size_types, toolchain
from imatrix_lab.models import hub_spec

SCHEMA = 1
NONE = "none"
PLAIN = "imatrix"
DEMO = "demo"
KEEP = ("all", "scores")
REFERENCE = "docs/recipe.toml"
_BITS = "bits:"
TOKENS_MIN = 1024  # two windows of 512
SAMPLES_MAX = 100


@dataclass(frozen=True)
class CalibrationSettings:
    """What imatrices are computed on."""

    texts: Annotated[
        tuple[str, ...],
        "languages (nb), mixtures of them (nb=0.5,en=0.5; merged from the languages' imatrices),"
        " controls (shuffled:nb, random-tokens), and none for quants without an imatrix",
    ]
    tokens: Annotated[int, "tokens of each sample, in the model's vocabulary"] = 65_536
    samples: Annotated[int, "disjoint samples of each language; their differences are noise"] = 1
    pooled: Annotated[bool, "also merge the samples of each language into one imatrix"] = False
    merge_by: Annotated[str, "weights in a merge: energy or tokens"] = "energy"


@dataclass(frozen=True)
class Evaluation:
    """The held-out text on which quants are compared with the original."""

    texts: Annotated[tuple[str, ...], "languages (held out) or NAME=FILE; empty: tasks only"] = ()
    documents: Annotated[int, "use the first N documents of each text; 0: all"] = 0
    document_tokens: Annotated[int, "use the first N tokens of each document; 0: all"] = 0
    protocol: Annotated[str, "document or llamacpp; see docs/scoring.md"] = "document"
    ctx: Annotated[int, "window size in tokens; 0: chosen by protocol"] = 0


@dataclass(frozen=True)
class Task:
    """A benchmark; imatrix-lab task list shows them."""

    name: Annotated[str, "name of a task, or your own TOML file"]
    languages: Annotated[tuple[str, ...], "empty: calibration languages that the task has"] = ()
    limit: Annotated[int, "items per language; 0: all"] = 0
    data: Annotated[str, "a local file or folder instead of the Hub"] = ""
    variant: Annotated[str, "how options are scored; empty: the task's default"] = ""


@dataclass(frozen=True)
class ComparisonSettings:
    """What is compared, decided before the data are seen."""

    family: Annotated[
        str, "comparisons adjusted together: calib, calibxlang, calibxtype, calibxlangxtype"
    ] = "calibxlangxtype"
    baseline: Annotated[
        str, "compare every calibration with this one, written as in texts; empty: all pairs"
    ] = ""
    adjust: Annotated[str, "holm, max-t, bh or none"] = "holm"
    margins: Annotated[
        dict[str, float],
        "smallest difference that matters, by metric: nats per token for kld_nats and nll_nats,"
        " points for score and top1_agreement; without one nothing is called equivalent",
    ] = field(default_factory=dict)
    metrics: Annotated[tuple[str, ...], "on texts; the first decides"] = ("kld_nats", "nll_nats")
    resamples: Annotated[int, "number of bootstrap/permutation resamples"] = 10_000


@dataclass(frozen=True)
class Preference:
    """A page on which people choose between answers, without knowing whose they are."""

    prompts: Annotated[str, "a language that has prompts, or a TOML file; empty: no page"] = ""
    models: Annotated[
        tuple[str, ...], "two or more: original, or calibrations as in texts (their first samples)"
    ] = ()
    type: Annotated[
        str, "of the calibrations' quants, as in results (Q4_K_M+feedback); empty: the first"
    ] = ""
    max_tokens: Annotated[int, "length of an answer at most"] = 300
    margin: Annotated[float, "smallest difference in wins that matters, in points; 0: none"] = 0.0


@dataclass(frozen=True)
class Limits:
    """What the study may use of this machine."""

    jobs: Annotated[int, "steps at a time; 0: as many as cores and memory allow"] = 0
    threads: Annotated[int, "threads per step; 0: all cores shared among the jobs"] = 0
    memory_gib: Annotated[float, "0: four fifths of the machine's memory; set it for a GPU"] = 0.0
    disk_gib: Annotated[float, "for quants to be scored, with keep = scores; 0: no limit"] = 0.0
    backend: Annotated[str, "cpu, cuda, metal or vulkan; empty: this machine's default"] = ""
    gpu_layers: Annotated[int, "layers on the GPU; -1: automatic"] = -1


@dataclass(frozen=True)
class Recipe:
    """A study: which calibrations, compared on what, and how.

    Files are named from the recipe's own folder.
    """

    schema: Annotated[int, "version of this format"]
    name: Annotated[str, "name of the study's folder: small letters, digits, - and _"]
    types: Annotated[
        tuple[str, ...],
        "quant types: Q4_K_M …; or sizes, for which the types of tensors are chosen by what the"
        " calibration's language suffers from: size:Q4_K_M (as large as that), size:3.5GiB,"
        " bits:4.5",
    ]
    calibration: CalibrationSettings
    evaluation: Evaluation = field(default_factory=Evaluation)
    models: Annotated[tuple[str, ...], "demo, a GGUF file, or hf:org/repo[@rev][:file]"] = (DEMO,)
    quantizers: Annotated[
        tuple[str, ...],
        "how weights are rounded: imatrix (llama-quantize with the imatrix), feedback (GPTQ's, on"
        " top of that), awq (channels scaled before it), awq+feedback; each makes every type with"
        " every calibration. int4-gptq and int4-awq have a grid of their own, to compare with",
    ] = (PLAIN,)
    question: Annotated[str, "the question, in a sentence"] = ""
    source: Annotated[str, "the paper it follows"] = ""
    unknown: Annotated[tuple[str, ...], "details that the paper does not give"] = ()
    tasks: tuple[Task, ...] = ()
    comparison: ComparisonSettings = field(default_factory=ComparisonSettings)
    preference: Preference = field(default_factory=Preference)
    limits: Limits = field(default_factory=Limits)
    seed: Annotated[int, "random seed"] = 1
    keep: Annotated[str, "all; or scores: quants are deleted once scored"] = "all"
    reduced: Annotated[
        dict[str, Any],
        'with models = ["demo"], these tables are laid over the others; a value that is no table'
        " replaces the other one",
    ] = field(default_factory=dict)

    @property
    def is_reduced(self) -> bool:
        """Whether the [reduced] tables were laid over the others."""
        return bool(self.reduced) and self.models == (DEMO,)

    @property
    def backend(self) -> str:
        """The backend it names, or this machine's."""
        return self.limits.backend or toolchain.default_backend()


def find(name: str) -> Path:
    """Return a recipe's file: a path, or the name of one that comes with the package."""
    path = expanded(name)
    if path.exists():
        return path
    shipped = {p.stem: p for p in sorted(paths.data_dir("recipes").glob("*.toml"))}
    if path.stem in shipped and path.parent.name in ("", "recipes"):
        return shipped[path.stem]
    fix = f"a TOML file ({REFERENCE} has every key), or one of: {' '.join(shipped)}"
    raise UsageError(f"no recipe {name!r}{config.nearest(path.stem, shipped)}", fix=fix)


def load(path: Path, folder: Path | None = None) -> Recipe:
    """Return a recipe, with [reduced] laid over it if the model is the demo model.

    The files that it names are in `folder`; None: in its own folder.
    """
    raw = config.read_toml(path)
    if raw.get("schema") != SCHEMA:
        problem = f"schema is {raw.get('schema')!r}; this version reads {SCHEMA}"
        fix = f"schema = {SCHEMA}; or, if it is newer, a newer imatrix-lab"
        raise UsageError(problem, where=path, fix=fix)
    full = config.build(Recipe, raw, path)
    if fixed := [key for key in ("schema", "name", "models", "reduced") if key in full.reduced]:
        raise UsageError(f"{fixed[0]!r} is not allowed in [reduced]", where=path)
    reduced = config.build(Recipe, _merged(raw, full.reduced), path, "reduced")
    # both are checked, so that a mistake in either form is reported at once
    checked = [_checked(recipe, path) for recipe in (full, reduced)]
    base = folder or path.parent
    chosen = checked[full.is_reduced]
    return _with_paths(chosen, lambda file: os.path.relpath(base / expanded(file)))


def _merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(table)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(table.get(key), Mapping)
        result[key] = _merged(table[key], value) if nested else value
    return result


def _checked(recipe: Recipe, path: Path) -> Recipe:
    for problem in _problems(recipe):
        raise UsageError(problem, where=path, fix=f"{REFERENCE} explains each key")
    texts = tuple(t if "=" in t else languages.get(t).code for t in recipe.evaluation.texts)
    if repeated := _repeated([text.partition("=")[0] for text in texts]):
        raise UsageError(f"evaluation.texts: two are called {repeated!r}", where=path)
    evaluation = replace(recipe.evaluation, texts=texts)
    tasks = tuple(
        replace(t, languages=tuple(map(languages.code, t.languages))) for t in recipe.tasks
    )
    types = tuple(dict.fromkeys(map(_type, recipe.types)))
    return replace(recipe, types=types, evaluation=evaluation, tasks=tasks)


def _problems(recipe: Recipe) -> Iterator[str]:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,59}", recipe.name):
        yield f"name: {recipe.name!r} has more than small letters, digits, - and _"
    yield from _list_problems(recipe)
    for name in recipe.types:
        try:
            _type(name)
        except KeyError:
            near = config.nearest(name.upper(), programs.QUANT_TYPES)
            yield f"types: llama-quantize has no {name!r}{near}"
        except UsageError as error:
            yield f"types: {error.what}"
    if recipe.keep not in KEEP:
        yield f"keep is {' or '.join(KEEP)}, not {recipe.keep!r}{config.nearest(recipe.keep, KEEP)}"
    for key, value, least, most in _ranges(recipe):
        if value < least:
            yield f"{key} = {value} is less than {least:,g}"
        elif value > most:
            yield f"{key} = {value} is more than {most:,g}"
    for metric, margin in recipe.comparison.margins.items():
        if margin <= 0:
            yield f"comparison.margins: {metric} = {margin} is not above 0"


def _type(name: str) -> str:
    """Return a type as llama-quantize calls it, or a size (see `size_types`).

    Raises KeyError: no such type; UsageError: not a size.
    """
    word = name.strip()
    if word.startswith(_BITS):
        return size_types.parse(f"{word.removeprefix(_BITS)}bpw")
    return size_types.parse(word) if size_types.is_size(word) else programs.quant_types([word])[0]


def _list_problems(recipe: Recipe) -> Iterator[str]:
    lists = {"models": recipe.models, "types": recipe.types, "quantizers": recipe.quantizers}
    lists["calibration.texts"] = recipe.calibration.texts
    lists["comparison.metrics"] = recipe.comparison.metrics
    for key, names in lists.items():
        if not names:
            yield f"{key} must not be empty"
        if not all(name.strip() for name in names):
            yield f"{key}: one of the names is empty"
        if repeated := _repeated(names):
            yield f"{key}: {repeated!r} is listed twice"
    if not recipe.evaluation.texts and not recipe.tasks:
        yield "nothing to compare on: neither evaluation.texts nor [[tasks]]"


def _ranges(recipe: Recipe) -> Iterator[tuple[str, float, float, float]]:
    most = float(1 << 53)
    yield "seed", recipe.seed, 0, most
    yield "calibration.tokens", recipe.calibration.tokens, TOKENS_MIN, most
    yield "calibration.samples", recipe.calibration.samples, 1, SAMPLES_MAX
    yield "evaluation.documents", recipe.evaluation.documents, 0, most
    yield "evaluation.document_tokens", recipe.evaluation.document_tokens, 0, most
    yield "evaluation.ctx", recipe.evaluation.ctx, 0, most
    yield "comparison.resamples", recipe.comparison.resamples, 100, 1_000_000
    yield "preference.max_tokens", recipe.preference.max_tokens, 1, most
    yield "preference.margin", recipe.preference.margin, 0, 100
    for task in recipe.tasks:
        yield f"limit of {task.name}", task.limit, 0, most
    for key, value in vars(recipe.limits).items():
        if not isinstance(value, str):
            yield f"limits.{key}", value, -1 if key == "gpu_layers" else 0, most


def _repeated(names: Sequence[str]) -> str:
    return next((name for i, name in enumerate(names) if name in names[:i]), "")


def without_folders(recipe: Recipe) -> Recipe:
    """Return a recipe whose files are named without their folders: the same from anywhere."""
    return _with_paths(recipe, lambda file: Path(os.path.normpath(Path.cwd() / file)).name)


def absolute(recipe: Recipe) -> Recipe:
    """Return a recipe whose files are named from the root: the same in any folder."""
    return _with_paths(recipe, os.path.abspath)


def _with_paths(recipe: Recipe, change: Callable[[str], str]) -> Recipe:

    def text(entry: str) -> str:
        label, is_file, file = entry.partition("=")
        return f"{label}={change(file)}" if is_file else entry

    def task(old: Task) -> Task:
        name = change(old.name) if old.name.endswith(".toml") else old.name
        return replace(old, name=name, data=change(old.data) if old.data else "")

    prompts = recipe.preference.prompts
    if prompts.endswith(".toml"):
        prompts = change(prompts)
    return replace(
        recipe,
        preference=replace(recipe.preference, prompts=prompts),
        models=tuple(m if is_remote(m) else change(m) for m in recipe.models),
        evaluation=replace(recipe.evaluation, texts=tuple(map(text, recipe.evaluation.texts))),
        tasks=tuple(map(task, recipe.tasks)),
    )


def is_remote(model: str) -> bool:
    """Whether a model is the demo model or on the Hub, and not a file."""
    return model == DEMO or hub_spec.is_spec(model)
