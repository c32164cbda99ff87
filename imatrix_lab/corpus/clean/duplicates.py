"""Drop what occurs twice: whole documents, nearly equal ones, paragraphs and lines.

Only hashes are kept, in three tables of bounded size (`HashSet`): at 3 kB a document and 500
bytes a paragraph they hold at least the last 1.5 GB of text, in at most 480 MB of memory.
A repeat from further back is missed. `rensa` computes the MinHash signatures (Broder, 1997); its
own index keeps every signature, so the bands of the LSH are looked up here.

Signatures have 128 values in 8 bands of 16: two documents that share a fraction s of their
shingles are taken as duplicates with probability 1-(1-s^16)^8: 0.01 % at 0.5, 2.6 % at 0.7, 80 % at
0.9, 99 % at 0.95. The candidates are not compared again, which is why the curve is steep.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import rensa

from imatrix_lab.corpus.clean.report import LINES, PARAGRAPHS, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules
from imatrix_lab.corpus.clean.shingles import shingles

N_WORDS, N_CHARACTERS = 3, 8
N_BANDS, ROWS = 8, 16
SHINGLES_MIN = 24
"""Documents with fewer are only compared whole: one word would be a large part."""

_TABLE_MIN = 1 << 10


class Duplicates:
    """The documents, paragraphs and lines seen so far."""

    def __init__(self, rules: Rules):
        self._prose = rules.prose
        self._documents = HashSet()
        self._bands = HashSet()
        self._paragraphs = HashSet()
        # a short sentence may occur again in good prose: «Hva mener du?»
        self._repeat_min = rules.chars(40)

    def drop(self, draft: Draft, hashes: Hashes, report: Report) -> None:
        """Empty a draft that was seen before, or take out its paragraphs and lines that were."""
        report.step, where = "duplicates", draft.document.id
        reason = ""
        if not self._documents.add(hashes.document):
            reason = "same document"
        elif any(band in self._bands for band in hashes.bands):
            reason = "near-duplicate document"
        if reason:
            return draft.empty(reason, report)
        for band in hashes.bands:
            self._bands.add(band)
        if not self._prose:
            return  # a program has the same line many times
        pairs = zip(draft.paragraphs, hashes.paragraphs, strict=True)
        rest = (self._without_repeats(text, hashed, where, report) for text, hashed in pairs)
        draft.paragraphs = [paragraph for paragraph in rest if paragraph]

    def _without_repeats(self, paragraph: str, hashed: int, where: str, report: Report) -> str:
        if len(paragraph) < self._repeat_min:
            return paragraph
        if not self._paragraphs.add(hashed):
            report.count("same paragraph", PARAGRAPHS, where, paragraph)
            return ""
        if "\n" not in paragraph:
            return paragraph
        kept = []
        for line in paragraph.split("\n"):
            if len(line) >= self._repeat_min and not self._paragraphs.add(_hash(line.casefold())):
                report.count("same line", LINES, where, line)
            else:
                kept.append(line)
        return "\n".join(kept)


def _hash(text: str) -> int:
    """Return 64 bits, the same on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class Hashes(NamedTuple):
    """Hashes of a document, its LSH bands (none if it is very short) and its paragraphs."""

    document: int
    bands: list[int]
    paragraphs: list[int]


def hashes(drafts: Sequence[Draft]) -> list[Hashes]:
    """Return the hashes of drafts, without regard to case."""
    folded = [[paragraph.casefold() for paragraph in draft.paragraphs] for draft in drafts]
    texts = ["\n\n".join(paragraphs) for paragraphs in folded]
    return [
        Hashes(_hash(text), of_bands, [_hash(paragraph) for paragraph in paragraphs])
        for text, of_bands, paragraphs in zip(texts, bands(texts), folded, strict=True)
    ]


def bands(texts: Sequence[str]) -> list[list[int]]:
    """Return the hashes of the LSH bands of casefolded texts; none for a very short one."""
    matrix_of = rensa.RMinHash.digest_matrix_from_flat_token_hashes
    runs, offsets = shingles(texts, N_WORDS, N_CHARACTERS)
    rows = np.array(matrix_of(runs, offsets, N_BANDS * ROWS, 1).to_rows(), np.uint64)
    rows = rows.reshape(len(texts), N_BANDS, ROWS)
    hashed = np.tile(np.arange(N_BANDS, dtype=np.uint64), (len(texts), 1))
    for i in range(ROWS):
        hashed = (hashed ^ rows[:, :, i]) * np.uint64(0x9E3779B97F4A7C15)
        hashed ^= hashed >> np.uint64(29)
    is_long = np.diff(offsets) >= SHINGLES_MIN
    return [row if long else [] for row, long in zip(hashed.tolist(), is_long, strict=True)]


class HashSet:
    """A set of 64-bit hashes: 11 to 22 bytes each where a Python set of ints takes about 100.

    Memory is bounded: there are two tables of at most `limit` hashes. When the newer is full
    the older is forgotten, so at least the last `limit` hashes are always known.
    Each is an open-addressed table with linear probing, at most three quarters full.
    """

    def __init__(self, limit: int = 1 << 22):
        self._limit = limit
        self._old: array[int] | None = None
        self._start()

    def _start(self) -> None:
        self._table = array("Q", bytes(8 * _TABLE_MIN))
        self._n = 0

    def __contains__(self, value: int) -> bool:
        value = value or 1  # 0 marks a free place
        if self._table[_place(self._table, value)] == value:
            return True
        return self._old is not None and self._old[_place(self._old, value)] == value

    def add(self, value: int) -> bool:
        """Add a hash; return whether it is new."""
        value = value or 1
        place = _place(self._table, value)
        if self._table[place] == value:
            return False
        if self._old is not None and self._old[_place(self._old, value)] == value:
            return False
        if self._n >= self._limit:
            self._old = self._table
            self._start()
            place = _place(self._table, value)
        elif 4 * self._n >= 3 * len(self._table):
            before, self._table = self._table, array("Q", bytes(16 * len(self._table)))
            for known in filter(None, before):
                self._table[_place(self._table, known)] = known
            place = _place(self._table, value)
        self._table[place] = value
        self._n += 1
        return True


def _place(table: array[int], value: int) -> int:
    mask = len(table) - 1
    # not the low bits of the value: neighbours in the table would then share them
    place = (value * 0x9E3779B97F4A7C15 >> 40) & mask
    while (entry := table[place]) and entry != value:
        place = (place + 1) & mask
    return place
