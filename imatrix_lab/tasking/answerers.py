"""Who answers a task's items: a quant in process, or a server somewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from imatrix_lab.records import ChoiceItem, ChoiceScores, Generated, GenerateItem


class Answerer(Protocol):
    """What a task needs of an engine."""

    label: str

    def quant(self) -> dict[str, Any]:
        """Return what answers, for the signature: sha256, name, type, calibration."""

    def instrument(self) -> dict[str, Any]:
        """Return how it answers, for the signature: toolchain, protocol, compute."""

    def choose(self, items: Iterable[ChoiceItem]) -> Iterator[ChoiceScores]:
        """Yield likelihoods of options."""

    def generate(self, items: Iterable[GenerateItem]) -> Iterator[Generated]:
        """Yield answers, in any order."""
