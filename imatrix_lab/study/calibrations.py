"""The importance matrices a recipe asks for: of languages and controls, mixed, pooled, none."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from imatrix_lab.corpus.build import slug
from imatrix_lab.corpus.mixture import SHUFFLED, Mixture, Part
from imatrix_lab.records.runs import NO_IMATRIX
from imatrix_lab.report.results import ALL_SAMPLES
from imatrix_lab.study.recipe import NONE, Recipe
from imatrix_lab.study.validate import mixtures

LANGUAGE, MIXTURE, POOLED, CONTROL = "language", "mixture", "pooled", "control"
POOLED_BY = "tokens"
"""As if one run had seen all samples."""


@dataclass(frozen=True)
class Single:
    """One sample of a text of one kind, and the matrix collected on it.

    Attributes
    ----------
    label : ``nb``, ``shuffled-nb``, ``random-tokens``.
    word : as `corpus.mixture.parse` takes it.
    language : code; empty for random tokens.
    """

    label: str
    name: str
    word: str
    language: str
    is_control: bool
    sample: int

    @property
    def id(self) -> str:
        """Name in steps and files."""
        return f"{self.label}.{self.sample}"


@dataclass(frozen=True)
class Calibration:
    """What quants are made with.

    Attributes
    ----------
    label : as `compare` reads it from a quant.
    sample : from 1; `ALL_SAMPLES` of a pool, and without an imatrix.
    parts : singles and their weights; one with weight 1 is itself, none is no imatrix.
    by : how parts are merged.
    """

    label: str
    name: str
    kind: str
    sample: int
    parts: tuple[tuple[Single, float], ...]
    by: str = ""

    @property
    def id(self) -> str:
        """Name in steps and files; that of a single is the single's own."""
        if self.kind == NONE:
            return NONE
        return f"{self.label}.{self.sample}" if self.sample else self.label

    @property
    def is_merged(self) -> bool:
        """Whether no model is run for it, others' sums are added."""
        return self.kind in (MIXTURE, POOLED)

    def shares(self) -> dict[str, float]:
        """Return the share of each language."""
        found: dict[str, float] = {}
        for single, weight in self.parts:
            if single.language:
                found[single.language] = found.get(single.language, 0.0) + weight
        return found


def calibrations(recipe: Recipe) -> list[Calibration]:
    """Return what a recipe calibrates on, in its order; samples, then the pool of them."""
    found = []
    known = mixtures(recipe)
    for word in recipe.calibration.texts:
        if word == NONE:
            found.append(Calibration(NO_IMATRIX, NO_IMATRIX, NONE, ALL_SAMPLES, ()))
        else:
            found += _of(known[word], recipe)
    return found


def _of(mixture: Mixture, recipe: Recipe) -> Iterator[Calibration]:
    wanted, samples = recipe.calibration, range(1, recipe.calibration.samples + 1)
    first = single(mixture.parts[0], 1)
    kind = CONTROL if first.is_control else LANGUAGE
    if mixture.parts[1:]:
        kind = MIXTURE
    label = _label(mixture)
    for k in samples:
        parts = tuple((single(part, k), part.weight) for part in mixture.parts)
        by = wanted.merge_by if kind == MIXTURE else ""
        yield Calibration(label, mixture.name, kind, k, parts, by)
    if wanted.pooled and kind == LANGUAGE and wanted.samples > 1:
        every = tuple((single(mixture.parts[0], k), 1 / wanted.samples) for k in samples)
        name = f"{mixture.name}, {wanted.samples} samples"
        yield Calibration(f"{label}-{POOLED}", name, POOLED, ALL_SAMPLES, every, POOLED_BY)


def _label(mixture: Mixture) -> str:
    """Return a mixture's label as it survives in the metadata of imatrices and quants."""
    found = slug(mixture.label)
    if len(found) == len(mixture.label):
        return found
    return f"{found[:31]}-{sha256(mixture.label.encode()).hexdigest()[:8]}"


def single(part: Part, sample: int) -> Single:
    """Return one sample of a part of a mixture."""
    code = part.language.code if part.language else ""
    word = f"{SHUFFLED}:{code}" if part.shuffled else code or part.label
    return Single(part.label, part.name, word, code, part.shuffled or not code, sample)


def singles(found: list[Calibration]) -> list[Single]:
    """Return every text that a model is run on, once."""
    return list(dict.fromkeys(single for c in found for single, _ in c.parts))
