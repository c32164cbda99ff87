"""The importance matrices a recipe asks for: of languages and controls, mixed, pooled, none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from imatrix_lab.core.names import slug
from imatrix_lab.corpus import mixture
from imatrix_lab.corpus.mixture import SHUFFLED, Mixture, Part
from imatrix_lab.records.runs import NO_IMATRIX
from imatrix_lab.report.results import ALL_SAMPLES
from imatrix_lab.study.recipe import NONE, Recipe

LANGUAGE, MIXTURE, POOLED, CONTROL = "language", "mixture", "pooled", "control"
POOLED_BY = "tokens"  # as if one run had seen all samples


@dataclass(frozen=True)
class Calibration:
    """An importance matrix to be made: collected on a text, merged from parts by `by`, or none.

    Attributes
    ----------
    label : as `compare` reads it from a quant: ``nb``, ``shuffled-nb``, ``nb50-en50``.
    kind : `LANGUAGE`, `CONTROL`, `MIXTURE`, `POOLED` or `NONE`.
    sample : from 1; `ALL_SAMPLES` of a pool, and without an imatrix.
    text : as `corpus.mixture.parse` takes it; empty for what is not collected.
    language : code of that text's language; empty for random tokens.
    """

    label: str
    name: str
    kind: str
    sample: int
    text: str = ""
    language: str = ""
    parts: tuple[tuple["Calibration", float], ...] = ()
    by: str = ""

    @property
    def id(self) -> str:
        """Name in steps and files."""
        label = NONE if self.kind == NONE else self.label
        return f"{label}.{self.sample}" if self.sample else label

    def texts(self) -> dict[str, tuple["Calibration", float]]:
        """Return what it was collected on, by name, with weights; nothing without an imatrix."""
        parts = self.parts or (((self, 1.0),) if self.text else ())
        is_pool = len({part.label for part, _ in parts}) < len(parts)
        return {part.id if is_pool else part.label: (part, weight) for part, weight in parts}

    def shares(self) -> dict[str, float]:
        """Return the share of each language."""
        shares: dict[str, float] = {}
        for part, weight in self.parts or ((self, 1.0),):
            if part.language:
                shares[part.language] = shares.get(part.language, 0.0) + weight
        return shares


def mixtures(recipe: Recipe) -> dict[str, Mixture]:
    """Return the calibration texts except none, by their entry in the recipe."""
    return {text: mixture.parse(text) for text in recipe.calibration.texts if text != NONE}


def calibrations(recipe: Recipe) -> list[Calibration]:
    """Return what a recipe calibrates on, in its order; samples, then the pool of them."""
    parsed, none = mixtures(recipe), Calibration(NO_IMATRIX, NO_IMATRIX, NONE, ALL_SAMPLES)
    planned = list[Calibration]()
    for text in recipe.calibration.texts:
        planned += [none] if text == NONE else _of_mixture(parsed[text], recipe)
    return planned


def _of_mixture(text: Mixture, recipe: Recipe) -> Iterator[Calibration]:
    settings, samples = recipe.calibration, range(1, recipe.calibration.samples + 1)
    if len(text.parts) > 1:
        label = _label(text)
        for k in samples:
            parts = tuple((_collected(part, k), part.weight) for part in text.parts)
            yield Calibration(label, text.name, MIXTURE, k, parts=parts, by=settings.merge_by)
        return
    singles = [_collected(text.parts[0], k) for k in samples]
    yield from singles
    if settings.pooled and len(singles) > 1 and singles[0].kind == LANGUAGE:
        name = f"{text.name}, {settings.samples} samples"
        parts = tuple((single, 1 / settings.samples) for single in singles)
        label = f"{text.label}-{POOLED}"
        yield Calibration(label, name, POOLED, ALL_SAMPLES, parts=parts, by=POOLED_BY)


def _label(text: Mixture) -> str:
    """Return a mixture's label as it survives in the metadata of imatrices and quants."""
    label = slug(text.label)
    digest = sha256(text.label.encode()).hexdigest()
    return label if len(label) == len(text.label) else f"{label[:31]}-{digest[:8]}"


def _collected(part: Part, sample: int) -> Calibration:
    code = part.language.code if part.language else ""
    text = f"{SHUFFLED}:{code}" if part.shuffled else code or part.label
    kind = CONTROL if part.shuffled or not code else LANGUAGE
    return Calibration(part.label, part.name, kind, sample, text, code)


def collected(planned: Sequence[Calibration]) -> list[Calibration]:
    """Return every calibration whose text a model is run on, once; merges are made of these."""
    every = [c for whole in planned for c in (whole, *(part for part, _ in whole.parts))]
    return list(dict.fromkeys(c for c in every if c.text))
