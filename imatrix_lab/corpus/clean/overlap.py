"""Find runs of words that two texts share: evaluation text must not be calibrated on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.corpus import documents, tables
from imatrix_lab.corpus.clean.shingles import shingles

N_WORDS, N_CHARACTERS = 8, 20
"""Runs of 8 words, or of 20 characters in scripts without spaces, rarely repeat by chance."""

_PENDING_MAX = 1 << 20
_BATCH_CHARS = 1 << 18


class Shingles:
    """The runs of words and characters of some texts, 8 bytes each; shorter texts have none."""

    def __init__(self) -> None:
        self._known: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._pending: list[NDArray[np.uint64]] = []
        self._n_pending = 0

    @classmethod
    def of(cls, texts: Iterable[str]) -> Shingles:
        """Return the shingles of texts."""
        known = cls()
        for batch in documents.batches(texts, _BATCH_CHARS, len):
            known.add(*batch)
        return known

    def add(self, *texts: str) -> None:
        """Add the runs of texts."""
        new, _ = shingles([text.casefold() for text in texts], N_WORDS, N_CHARACTERS)
        if new.size:
            self._pending.append(new)
            self._n_pending += new.size
        if self._n_pending > max(_PENDING_MAX, self._known.size // 4):
            self._settle()

    def hits(self, text: str) -> int:
        """Return how many runs of a text are known."""
        self._settle()
        runs, _ = shingles([text.casefold()], N_WORDS, N_CHARACTERS)
        if not self._known.size or not runs.size:
            return 0
        places = np.searchsorted(self._known, runs)
        places[places == self._known.size] = 0
        return int((self._known[places] == runs).sum())

    def __len__(self) -> int:
        self._settle()
        return int(self._known.size)

    def _settle(self) -> None:
        if self._pending:
            self._known = np.unique(np.concatenate([self._known, *self._pending]))
            self._pending, self._n_pending = [], 0


def task_strings(path: Path) -> Iterator[str]:
    """Yield every string of a task file: JSON, JSON lines, CSV, TSV, Parquet, else plain text.

    JSON gives its values at any depth, not the keys; plain text gives paragraphs.
    """
    match tables.format_of(path):
        case tables.TEXT:
            yield from documents.paragraphs(documents.lines(path))
        case tables.TABLE:
            for _, cells in tables.cells_of(path):
                yield from cells
        case tables.JSON:
            for value in tables.json_values(path):
                yield from _strings(value)
        case _:
            for _, value in tables.rows(path):
                yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings inside a value, in order; not recursive, as hostile JSON nests deep."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            pending.extend(reversed(value.values()))
        elif isinstance(value, list):
            pending.extend(reversed(value))
