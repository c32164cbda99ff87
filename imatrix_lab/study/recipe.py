"""A study's TOML -> frozen dataclasses, which are its only definition.

What a stage must know (mixtures, tasks, metrics) is checked by `study.check`.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from imatrix_lab.core import config, paths
from imatrix_lab.corpus import languages
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import programs

SCHEMA = 1
NONE = "none"
DEMO = "demo"
KEEP = ("all", "scores")
REFERENCE = "docs/recipe.toml"
TOKENS_MIN = 1024
"""llama-imatrix needs two windows of 512."""
SAMPLES_MAX = 100
_FIXED = ("schema", "name", "models", "reduced")
"""What [reduced] cannot replace."""


@dataclass(frozen=True)
class Calibration:
    """What imatrices are computed on."""

    texts: Annotated[
        tuple[str, ...],
        "languages (nb), mixtures of them (nb=0.5,en=0.5; merged from the languages' imatrices),"
        " controls (shuffled:nb, random-tokens), and none for quants without an imatrix",
    ]
    tokens: Annotated[int, "tokens of each sample, in the model's vocabulary"] = 65_536
    samples: Annotated[int, "disjoint samples of each language: their differences are noise"] = 1
    pooled: Annotated[bool, "also the samples of each language merged into one"] = False
    merge_by: Annotated[str, "how mixtures weigh: energy or tokens"] = "energy"


@dataclass(frozen=True)
class Evaluation:
    """The held-out text on which quants are compared with the original."""

    texts: Annotated[
        tuple[str, ...], "languages, whose held-out text is meant, or NAME=FILE; empty: tasks only"
    ] = ()
    documents: Annotated[int, "only the first so many documents of each; 0: all"] = 0
    protocol: Annotated[str, "document or llamacpp; see docs/scoring.md"] = "document"
    ctx: Annotated[int, "tokens in a window; 0 chooses by protocol"] = 0


@dataclass(frozen=True)
class Task:
    """A benchmark; see imatrix-lab task list."""

    name: Annotated[str, "of a task, or a TOML file of your own"]
    languages: Annotated[tuple[str, ...], "empty: those of the calibration that it has"] = ()
    limit: Annotated[int, "items of each language; 0: all"] = 0
    data: Annotated[str, "a file or folder in place of the Hub"] = ""
    variant: Annotated[str, "how options are scored; empty: the task's own way"] = ""


@dataclass(frozen=True)
class Comparison:
    """What is compared, decided before the data are seen."""

    family: Annotated[
        str, "what is adjusted for together: calib, calibxlang, calibxtype, calibxlangxtype"
    ] = "calibxlangxtype"
    baseline: Annotated[
        str, "compare every calibration with this one only, as texts has it; empty: all pairs"
    ] = ""
    adjust: Annotated[str, "holm, max-t, bh or none"] = "holm"
    margins: Annotated[
        dict[str, float],
        "smallest difference that matters, by metric: nats a token for kld_nats and nll_nats,"
        " points for score and top1_agreement; without one nothing is called equivalent",
    ] = field(default_factory=dict)
    metrics: Annotated[tuple[str, ...], "of texts; the first one decides"] = (
        "kld_nats",
        "nll_nats",
    )
    resamples: Annotated[int, "of documents, for bootstrap and permutation"] = 10_000


@dataclass(frozen=True)
class Limits:
    """What the study may use of this machine."""

    jobs: Annotated[int, "steps at a time; 0: as cores and memory allow"] = 0
    threads: Annotated[int, "of a step; 0: chosen by jobs"] = 0
    memory_gib: Annotated[float, "0: four fifths of the machine's; of a GPU's say it"] = 0.0
    disk_gib: Annotated[
        float, "for quants that wait to be scored, with keep = scores; 0: no limit"
    ] = 0.0
    backend: Annotated[str, "cpu, cuda, metal or vulkan; empty: this machine's"] = ""
    gpu_layers: Annotated[int, "layers on the GPU; -1 chooses"] = -1


@dataclass(frozen=True)
class Recipe:
    """A study: which calibrations, compared on what, and how.

    Files are named from the recipe's own folder.
    """

    schema: Annotated[int, "version of this format"]
    name: Annotated[str, "of the study's folder: small letters, digits, - and _"]
    types: Annotated[tuple[str, ...], "quant types: Q4_K_M …"]
    calibration: Calibration
    evaluation: Evaluation = field(default_factory=Evaluation)
    models: Annotated[tuple[str, ...], "demo, a GGUF file, or hf:org/repo[@rev][:file]"] = (DEMO,)
    question: Annotated[str, "in a sentence"] = ""
    source: Annotated[str, "the paper it follows"] = ""
    unknown: Annotated[tuple[str, ...], "details of the paper that are not known"] = ()
    tasks: tuple[Task, ...] = ()
    comparison: Comparison = field(default_factory=Comparison)
    limits: Limits = field(default_factory=Limits)
    seed: Annotated[int, "of every draw"] = 1
    keep: Annotated[str, "all, or scores: quants are removed once they are scored"] = "all"
    reduced: Annotated[
        dict[str, Any],
        'tables that are laid over the others while models = ["demo"]; other than tables,'
        " what is here replaces what is there",
    ] = field(default_factory=dict)

    @property
    def is_reduced(self) -> bool:
        """Whether the [reduced] tables were laid over the others."""
        return bool(self.reduced) and self.models == (DEMO,)


def find(word: str) -> Path:
    """Return the file that a user named: a path, or a recipe that comes with the package.

    Raises
    ------
    UsageError : neither; the message lists what there is.
    """
    path = Path(word)
    if path.exists():
        return path
    shipped = {p.stem: p for p in sorted(paths.data_dir("recipes").glob("*.toml"))}
    if path.stem in shipped and path.parent.name in ("", "recipes"):
        return shipped[path.stem]
    raise UsageError(
        f"no recipe {word!r}{config.nearest(path.stem, shipped)}",
        fix=f"a TOML file ({REFERENCE} has every key), or one of: {' '.join(shipped)}",
    )


def load(path: Path, folder: Path | None = None) -> Recipe:
    """Return a recipe, with [reduced] laid over it if the model is the demo model.

    Parameters
    ----------
    folder : where the files that it names are; None for its own folder.

    Raises
    ------
    UsageError : unreadable, an unknown key, or values that cannot be meant.
    """
    raw = config.read_toml(path)
    if raw.get("schema") != SCHEMA:
        raise UsageError(
            f"schema is {raw.get('schema')!r}, and {SCHEMA} is read here", where=path,
            fix=f"schema = {SCHEMA}; or, if it is newer, a newer imatrix-lab",
        )  # fmt: skip
    whole = config.build(Recipe, raw, path)
    if fixed := [key for key in _FIXED if key in whole.reduced]:
        raise UsageError(f"{fixed[0]!r} cannot stand in [reduced]", where=path)
    reduced = config.build(Recipe, _over(raw, whole.reduced), path, "reduced")
    found = [_checked(one, path) for one in (whole, reduced)]  # both: what is wrong is told at once
    return _placed(found[whole.is_reduced], path.parent if folder is None else folder)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with another laid over it."""
    both = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        both[key] = _over(below[key], value) if nested else value
    return both


def _checked(recipe: Recipe, path: Path) -> Recipe:
    """Return a recipe with the names of types and languages as everything else has them."""
    for fault in _faults(recipe):
        raise UsageError(fault, where=path, fix=f"{REFERENCE} says what each key means")
    texts = tuple(
        text if "=" in text else languages.get(text).code for text in recipe.evaluation.texts
    )
    if twice := _twice([text.partition("=")[0] for text in texts]):
        raise UsageError(f"evaluation.texts: two are called {twice!r}", where=path)
    types = programs.quant_types(recipe.types)
    return replace(recipe, types=types, evaluation=replace(recipe.evaluation, texts=texts))


def _faults(recipe: Recipe) -> Iterator[str]:
    """Yield what cannot be meant."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,59}", recipe.name):
        yield f"name: {recipe.name!r} is not of small letters, digits, - and _"
    yield from _lists(recipe)
    for word in recipe.types:
        try:
            programs.quant_types([word])
        except KeyError:
            near = config.nearest(word.upper(), programs.QUANT_TYPES)
            yield f"types: llama-quantize has no {word!r}{near}"
    if recipe.keep not in KEEP:
        yield f"keep is {' or '.join(KEEP)}, not {recipe.keep!r}{config.nearest(recipe.keep, KEEP)}"
    for key, value, least, most in _numbers(recipe):
        if value < least:
            yield f"{key} = {value} is less than {least:,g}"
        elif value > most:
            yield f"{key} = {value} is more than {most:,g}"
    for metric, margin in recipe.comparison.margins.items():
        if margin <= 0:
            yield f"comparison.margins: {metric} = {margin} is no difference that matters"


def _lists(recipe: Recipe) -> Iterator[str]:
    """Yield lists that are empty, or name something twice or not at all."""
    for key, words in {
        "models": recipe.models,
        "types": recipe.types,
        "calibration.texts": recipe.calibration.texts,
        "comparison.metrics": recipe.comparison.metrics,
    }.items():
        if not words:
            yield f"{key} must not be empty"
        if not all(word.strip() for word in words):
            yield f"{key}: one of the names is empty"
        if twice := _twice(words):
            yield f"{key}: {twice!r} is there twice"
    if not recipe.evaluation.texts and not recipe.tasks:
        yield "nothing to compare on: neither evaluation.texts nor [[tasks]]"


def _numbers(recipe: Recipe) -> Iterator[tuple[str, float, float, float]]:
    """Yield every number with the least and the most it may be."""
    most = float(1 << 53)
    yield "seed", recipe.seed, 0, most
    yield "calibration.tokens", recipe.calibration.tokens, TOKENS_MIN, most
    yield "calibration.samples", recipe.calibration.samples, 1, SAMPLES_MAX
    yield "evaluation.documents", recipe.evaluation.documents, 0, most
    yield "evaluation.ctx", recipe.evaluation.ctx, 0, most
    yield "comparison.resamples", recipe.comparison.resamples, 100, 1_000_000
    for task in recipe.tasks:
        yield f"limit of {task.name}", task.limit, 0, most
    for key, value in vars(recipe.limits).items():
        if not isinstance(value, str):
            yield f"limits.{key}", value, -1 if key == "gpu_layers" else 0, most


def _twice(words: list[str] | tuple[str, ...]) -> str:
    return next((word for i, word in enumerate(words) if word in words[:i]), "")


def _placed(recipe: Recipe, folder: Path) -> Recipe:
    """Return a recipe whose files are named from the working directory."""
    return _named(recipe, lambda word: os.path.relpath(folder / Path(word).expanduser()))


def without_folders(recipe: Recipe) -> Recipe:
    """Return a recipe whose files are named without their folders: the same from anywhere."""
    return _named(recipe, lambda word: Path(os.path.normpath(Path.cwd() / word)).name)


def _named(recipe: Recipe, at: Callable[[str], str]) -> Recipe:
    """Return a recipe with other names for its files."""

    def text(word: str) -> str:
        name, named, file = word.partition("=")
        return f"{name}={at(file)}" if named else word

    def task(one: Task) -> Task:
        name = at(one.name) if one.name.endswith(".toml") else one.name
        return replace(one, name=name, data=at(one.data) if one.data else "")

    return replace(
        recipe,
        models=tuple(m if m == DEMO or m.startswith("hf:") else at(m) for m in recipe.models),
        evaluation=replace(recipe.evaluation, texts=tuple(map(text, recipe.evaluation.texts))),
        tasks=tuple(map(task, recipe.tasks)),
    )
