"""The kinds of files that a study makes: types of llama-quantize, or sizes, by each quantizer.

A quantizer is one entry of `QUANTIZERS`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from imatrix_lab.llamacpp import size_types
from imatrix_lab.quantize import feedback
from imatrix_lab.quantize.run import QuantSpec
from imatrix_lab.study.calibrations import Calibration
from imatrix_lab.study.recipe import NONE, PLAIN, Recipe


def _plain(spec: QuantSpec) -> QuantSpec:
    return spec


def _with_feedback(spec: QuantSpec) -> QuantSpec:
    own = {f"imatrix_lab.{key}": text for key, text in feedback.metadata().items()}
    return replace(spec, feedback=True, metadata={**spec.metadata, **own})


@dataclass(frozen=True)
class Quantizer:
    """A way to round weights.

    Attributes
    ----------
    applied : a plain quant -> the same with this quantizer, its metadata included.
    check : raises UsageError for types of llama-quantize that it cannot make.
    needs_text : it makes nothing without a calibration text.
    needs_moments : calibrations are collected with second moments.
    has_types : its files have the recipe's types; else a grid of its own, and one file for each
        calibration.
    """

    applied: Callable[[QuantSpec], QuantSpec]
    check: Callable[[Sequence[str]], None] = lambda types: None
    needs_text: bool = True
    needs_moments: bool = False
    has_types: bool = True


QUANTIZERS: Mapping[str, Quantizer] = {
    PLAIN: Quantizer(_plain, needs_text=False),
    "feedback": Quantizer(_with_feedback, feedback.check_types, needs_moments=True),
}


@dataclass(frozen=True)
class Kind:
    """A type or size (empty: the quantizer's own), and how weights are rounded."""

    type: str
    quantizer: str = PLAIN

    @property
    def label(self) -> str:
        """The type in all results: ``Q4_K_M``, ``size:Q4_K_M``, ``Q4_K_M+feedback``."""
        return "+".join(filter(None, (self.type, self.quantizer if self.suffix else "")))

    @property
    def suffix(self) -> str:
        """What names of files have for the quantizer; nothing for llama-quantize alone."""
        return "" if self.quantizer == PLAIN else self.quantizer

    @property
    def id(self) -> str:
        """Name in steps and files of any system."""
        return self.label.replace(":", "-")

    @property
    def is_size(self) -> bool:
        """Whether the types of its tensors are chosen for a size."""
        return size_types.is_size(self.type)

    def is_made(self, calibration: Calibration) -> bool:
        """Whether there is such a file: without a text, some have nothing to go by."""
        needs_text = self.is_size or QUANTIZERS[self.quantizer].needs_text
        return calibration.kind != NONE or not needs_text


def kinds(recipe: Recipe) -> tuple[Kind, ...]:
    """Return the kinds of a recipe in its order."""
    typed = [q for q in recipe.quantizers if QUANTIZERS[q].has_types]
    own = [Kind("", q) for q in recipe.quantizers if q not in typed]
    return (*itertools.starmap(Kind, itertools.product(recipe.types, typed)), *own)


def contrasts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the labels of kinds that are compared with each other if their files are of one size.

    Other quantizers with the recipe's first one, and types chosen for a size with the standard
    type, made by the same quantizer or the first.
    """
    every = kinds(recipe)
    first = {kind.type: kind.quantizer for kind in reversed(every)}
    for b, a in itertools.product(every, every):
        is_chosen = a.is_size and not b.is_size and bool(b.type)
        compared = (size_types.standard(a.type) or b.type) if is_chosen else a.type
        partners = {first[b.type], a.quantizer} if is_chosen else {first[b.type]}
        if a != b and b.type == compared and b.quantizer in partners:
            yield a.label, b.label
