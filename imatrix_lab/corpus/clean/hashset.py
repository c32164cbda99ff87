"""Sets of 64-bit hashes in little and bounded memory."""

from __future__ import annotations

from array import array

_FIRST = 1 << 10


class HashSet:
    """Remembers hashes: 11 to 22 bytes each where a Python set of ints takes about 100.

    Memory is bounded: there are two tables of at most `limit` hashes. When the newer is full
    the older is forgotten, so that at least the last `limit` hashes are always known.
    Each is an open-addressed table with linear probing, at most three quarters full.
    """

    def __init__(self, limit: int = 1 << 22):
        self._limit = limit
        self._old: array[int] | None = None
        self._start()

    def _start(self) -> None:
        self._table = array("Q", bytes(8 * _FIRST))
        self._n = 0

    def __contains__(self, value: int) -> bool:
        value = value or 1  # 0 marks a free place
        if self._table[_place(self._table, value)] == value:
            return True
        return self._old is not None and self._old[_place(self._old, value)] == value

    def add(self, value: int) -> bool:
        """Remember a hash of 64 bits; return whether it was new."""
        if value in self:
            return False
        if self._n >= self._limit:
            self._old = self._table
            self._start()
        elif 4 * self._n >= 3 * len(self._table):
            self._grow()
        value = value or 1
        self._table[_place(self._table, value)] = value
        self._n += 1
        return True

    def _grow(self) -> None:
        before, self._table = self._table, array("Q", bytes(16 * len(self._table)))
        for value in before:
            if value:
                self._table[_place(self._table, value)] = value


def _place(table: array[int], value: int) -> int:
    """Return where a value is, or the free place where it belongs."""
    mask = len(table) - 1
    # the bits of a table's place and those of its neighbours' must not be the same ones
    at = (value * 0x9E3779B97F4A7C15 >> 40) & mask
    while (found := table[at]) and found != value:
        at = (at + 1) & mask
    return at
