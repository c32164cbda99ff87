"""Items that occur twice, or nearly: merged, or put into one cluster, before anything is averaged.

The same question with the same context and options, whatever its case, spaces and final mark, is
one item. Items whose texts share `SHARE_MIN` of their runs of three words are near-duplicates, and
stay, in one cluster. Candidates are found by their smallest hashes (Broder, 1997), then compared.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from imatrix_lab.tasks.items import Item

SHARE_MIN = 0.8
N_WORDS = 3
SHINGLES_MIN = 8
SKETCH = 12


@dataclass(frozen=True)
class Unique:
    """The first item of every group of repeats, with the gold answers of all, and its cluster.

    `n_near` are near-duplicates of an earlier item; `n_conflicts` are repeats whose right option
    was another.
    """

    items: tuple[Item, ...]
    n_near: int
    n_conflicts: int


def merge(items: Sequence[Item]) -> Unique:
    """Merge repeats and cluster near-duplicates; `items` are of one language."""
    first: dict[tuple[object, ...], Item] = {}
    n_conflicts = 0
    for item in items:
        key = (_flat(item.context), _flat(item.question), tuple(map(_flat, item.options)))
        if (earlier := first.get(key)) is None:
            first[key] = item
        elif item.right != earlier.right:
            n_conflicts += 1
        else:
            golds = tuple(dict.fromkeys((*earlier.golds, *item.golds)))
            first[key] = replace(earlier, golds=golds)
    unique = list(first.values())
    groups = _Groups(len(unique))
    texts = [f"{item.context} {item.question} {' '.join(item.options)}" for item in unique]
    n_near = _join_near(texts, groups)
    seen: dict[str, int] = {}
    for i, item in enumerate(unique):
        if item.cluster:
            groups.join(i, seen.setdefault(item.cluster, i))
    names = [_name(unique[groups.first(i)]) for i in range(len(unique))]
    clustered = (replace(item, cluster=names[i]) for i, item in enumerate(unique))
    return Unique(tuple(clustered), n_near, n_conflicts)


def _name(item: Item) -> str:
    name = item.cluster or item.id
    return name if len(name) <= 64 else blake2b(name.encode(), digest_size=8).hexdigest()


def _flat(text: str) -> str:
    flat = " ".join(text.casefold().split())
    return flat.rstrip(" .?!…。？！।؟") or flat


class _Groups:
    """Places in groups, which can be joined; a group is known by its first place."""

    def __init__(self, n: int):
        self._root = list(range(n))

    def first(self, i: int) -> int:
        while self._root[i] != i:
            self._root[i] = self._root[self._root[i]]
            i = self._root[i]
        return i

    def join(self, a: int, b: int) -> None:
        first, other = sorted((self.first(a), self.first(b)))
        self._root[other] = first


def _join_near(texts: Sequence[str], groups: _Groups) -> int:
    """Join texts that are nearly the same; return how many are like an earlier one."""
    sets, later = [_shingles(text) for text in texts], set()
    by_hash: dict[int, list[int]] = {}
    for place, shingles in enumerate(sets):
        if len(shingles) < SHINGLES_MIN:
            continue
        sketch = sorted(shingles)[:SKETCH]
        for other in sorted({i for value in sketch for i in by_hash.get(value, ())}):
            if groups.first(other) == groups.first(place):
                continue  # connected by others
            n_shared = len(shingles & sets[other])
            if n_shared >= SHARE_MIN * (len(shingles) + len(sets[other]) - n_shared):
                groups.join(other, place)
                later.add(place)
        for value in sketch:
            by_hash.setdefault(value, []).append(place)
    return len(later)


def _shingles(text: str) -> set[int]:
    """Return hashes of all runs of words; of characters where words are not separated."""
    units: Sequence[str] = re.findall(r"[^\s.,;:!?…]+", text.casefold())
    if sum(map(len, units)) > 20 * len(units):
        units = "".join(units)
    runs = zip(*(units[i:] for i in range(N_WORDS)), strict=False)
    return {zlib.crc32(" ".join(run).encode()) for run in runs}
