"""The kinds of files that a study makes: types of llama-quantize, or sizes, by each quantizer.

A quantizer is one entry of `QUANTIZERS`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from imatrix_lab.llamacpp import size_types
from imatrix_lab.models import scaling
from imatrix_lab.quantize import awq, feedback, int4
from imatrix_lab.quantize.metadata import Value
from imatrix_lab.quantize.run import QuantSpec
from imatrix_lab.study.calibrations import Calibration
from imatrix_lab.study.recipe import NONE, PLAIN, Recipe
from imatrix_lab.types import Model


def _plain(spec: QuantSpec) -> QuantSpec:
    return spec


def _with_feedback(spec: QuantSpec) -> QuantSpec:
    return replace(spec, feedback=True, metadata=_more(spec, feedback.metadata()))


def _with_awq(spec: QuantSpec) -> QuantSpec:
    return replace(spec, awq=True, metadata=_more(spec, awq.metadata()))


def _with_both(spec: QuantSpec) -> QuantSpec:
    return _with_feedback(_with_awq(spec))


def _more(spec: QuantSpec, own: Mapping[str, str]) -> dict[str, Value]:
    return {**spec.metadata, **{f"imatrix_lab.{key}": text for key, text in own.items()}}


def _int4(quant_type: str, spec: QuantSpec) -> QuantSpec:
    return replace(spec, quant_type=quant_type)


def _anything(given: object) -> None:
    """Raise nothing."""


@dataclass(frozen=True)
class Quantizer:
    """A way to round weights.

    Attributes
    ----------
    applied : a plain quant -> the same with this quantizer, its metadata included.
    check : raises UsageError for types of llama-quantize that it cannot make.
    check_model : raises BadModel for a model that it does not know.
    needs_text : it makes nothing without a calibration text.
    needs_moments : calibrations are collected with second moments.
    has_types : its files have the recipe's types; else a grid of its own, and one file for each
        calibration.
    """

    applied: Callable[[QuantSpec], QuantSpec]
    check: Callable[[Sequence[str]], None] = _anything
    check_model: Callable[[Model], None] = _anything
    needs_text: bool = True
    needs_moments: bool = False
    has_types: bool = True


QUANTIZERS: Mapping[str, Quantizer] = {
    PLAIN: Quantizer(_plain, needs_text=False),
    "feedback": Quantizer(_with_feedback, feedback.check_types, needs_moments=True),
    "awq": Quantizer(_with_awq, check_model=scaling.check, needs_moments=True),
    "awq+feedback": Quantizer(_with_both, feedback.check_types, scaling.check, needs_moments=True),
    "int4-gptq": Quantizer(partial(_int4, int4.GPTQ), needs_moments=True, has_types=False),
    "int4-awq": Quantizer(
        partial(_int4, int4.AWQ), check_model=scaling.check, needs_moments=True, has_types=False
    ),
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
