"""From documents to one calibration text, of which every prefix is balanced.

llama-imatrix cuts the text into windows and, with ``--chunks``, takes a prefix. So documents
are kept in blocks of at least one window, a source's blocks come in seeded order, and the
next block is taken from the source that is furthest behind its share.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from imatrix_lab.corpus.documents import JOINT
from imatrix_lab.types import Document

BLOCK_TOKENS = 1024
"""Two windows of llama-imatrix's default size."""
START_CHARS = 8192
"""Documents that are longer are counted only as far as needed, but never less than this."""
SPARE_TOKENS = 64
"""Where a text is cut changes the tokens before; so many more are out of reach of that."""


@dataclass(frozen=True)
class Block:
    """Neighbouring documents of one source, in its order, and the tokens of each."""

    documents: tuple[Document, ...]
    sizes: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of all its documents."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Lane:
    """What one source may give to a text, in blocks."""

    name: str
    blocks: tuple[Block, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of all its blocks."""
        return sum(b.n_tokens for b in self.blocks)


def blocks(documents: Sequence[Document], sizes: Sequence[int]) -> list[Block]:
    """Return runs of whole documents of at least `BLOCK_TOKENS`; a short rest joins the last."""
    starts = [0]
    n_tokens = 0
    for i, size in enumerate(sizes):
        if n_tokens >= BLOCK_TOKENS:
            starts.append(i)
            n_tokens = 0
        n_tokens += size
    if n_tokens < BLOCK_TOKENS and len(starts) > 1:
        starts.pop()
    ends = [*starts[1:], len(documents)]
    return [
        Block(tuple(documents[start:end]), tuple(sizes[start:end]))
        for start, end in zip(starts, ends, strict=True)
        if start < end
    ]


def shuffled(lane: Lane, seed: int) -> Lane:
    """Return a lane with its blocks in an order given by the seed."""
    order = list(lane.blocks)
    random.Random(f"{seed} {lane.name}").shuffle(order)
    return Lane(lane.name, tuple(order))


def deal(lanes: Sequence[Lane], k: int, n_samples: int) -> list[Lane]:
    """Return the lanes of sample `k` (from 1) of `n_samples` that share no document."""
    return [Lane(lane.name, lane.blocks[k - 1 :: n_samples]) for lane in lanes]


def redraw(lanes: Sequence[Lane], quotas: Sequence[int], k: int, seed: int) -> list[Lane]:
    """Return bootstrap lanes: blocks drawn with replacement until each has its quota."""
    redrawn = []
    for lane, quota in zip(lanes, quotas, strict=True):
        rng = random.Random(f"{seed} {k} {lane.name}")
        blocks: list[Block] = []
        while sum(b.n_tokens for b in blocks) < quota:
            blocks.append(rng.choice(lane.blocks))
        redrawn.append(Lane(lane.name, tuple(blocks)))
    return redrawn


def shares(available: Sequence[int], n_tokens: int) -> list[int]:
    """Return how many of `n_tokens` each source gives: equal parts, or all of a small source."""
    given = [0] * len(available)
    remaining = n_tokens
    for rank, i in enumerate(sorted(range(len(available)), key=lambda i: available[i])):
        given[i] = min(available[i], -(-remaining // (len(available) - rank)))
        remaining -= given[i]
    return given


def interleave(
    lanes: Sequence[Lane], quotas: Sequence[int], count: Callable[[str], int]
) -> Iterator[tuple[str, Document]]:
    """Yield (lane, document) so that every prefix has the quotas' proportions.

    The document that meets a lane's quota is cut there.
    """
    blocks = [list(reversed(lane.blocks)) for lane in lanes]
    taken = [0] * len(lanes)
    while lanes_left := [i for i, rest in enumerate(blocks) if rest and taken[i] < quotas[i]]:
        i = min(lanes_left, key=lambda i: taken[i] / quotas[i])
        block = blocks[i].pop()
        for document, size in zip(block.documents, block.sizes, strict=True):
            room = quotas[i] - taken[i]
            if room <= 0:
                break
            text = document.text if size <= room else _cut(document.text, 0, room, count)
            taken[i] += size
            if text:
                yield lanes[i].name, replace(document, text=text)


def joined(documents: Sequence[Document]) -> str:
    """Return the documents as one text, with blank lines between them."""
    return JOINT.join(d.text for d in documents)


def ends(text: str, documents: Sequence[Document]) -> list[int]:
    """Return where each of the joined documents ends, in bytes; the text may be cut."""
    ends, at, n_bytes = list[int](), 0, 0
    for document in documents:
        if part := text[at : at + len(document.text)]:
            ends.append(n_bytes + len(part.encode()))
            at, n_bytes = at + len(part) + len(JOINT), ends[-1] + len(JOINT)
    return ends


def within_budget(
    documents: Iterable[Document],
    n_tokens: int,
    count: Callable[[str], int],
    on_tokens: Callable[[int], None] = lambda _: None,
) -> tuple[str, list[Document]]:
    """Return (text, documents used): the documents joined, and cut in the last that fits.

    It has exactly `n_tokens` tokens (BOS included) if the tokenizer allows it, and never more.
    No more is read and counted than that takes; `on_tokens` hears how many there are so far.
    """
    estimate = 0
    used: list[Document] = []
    texts: list[str] = []
    for document in documents:
        text, n = start_with(document.text, n_tokens - estimate, count)
        if len(text) < len(document.text):  # not by an estimate
            estimate = count(JOINT.join(texts))
            text, n = start_with(document.text, n_tokens - estimate, count)
        used.append(document)
        texts.append(text)
        estimate += n
        on_tokens(min(estimate, n_tokens))
        # documents count a little more alone than joined: count the whole only near the budget
        if estimate >= n_tokens:
            estimate = count(whole := JOINT.join(texts))
            if estimate >= n_tokens:
                return _shortened(whole, len(text), n_tokens, count), used
    return JOINT.join(texts), used


def starts(
    documents: Iterable[Document], n_tokens: int, count: Callable[[str], int]
) -> list[Document]:
    """Return each document's first tokens, at most so many."""
    return [replace(d, text=within_budget([d], n_tokens, count)[0]) for d in documents]


def start_with(text: str, n_tokens: int, count: Callable[[str], int]) -> tuple[str, int]:
    """Return the start of a text that has more than `n_tokens`, or all of it, and its tokens.

    A long line without blanks can take time that grows with its square, so little is counted.
    """
    n_chars = START_CHARS
    while True:
        start = text[:n_chars]
        n = count(start + JOINT)
        if len(start) == len(text) or n > n_tokens + SPARE_TOKENS:
            return start, n
        n_chars *= 2


def _shortened(text: str, n_last: int, n_tokens: int, count: Callable[[str], int]) -> str:
    """Cut the last `n_last` characters by their own tokens, then correct by the whole's count.

    This takes two or three counts of the whole, where a search over it would take a dozen.
    """
    before, last = text[:-n_last], text[-n_last:]
    budget = n_tokens - count(before)
    for _ in range(4):
        shorter = before + _cut(last, 0, budget, count)
        missing = n_tokens - count(shorter)
        if missing == 0:
            return shorter
        budget += missing
    n_fitting = len(before) if count(before) <= n_tokens else 0
    return _cut(text, n_fitting, n_tokens, count)


def _cut(text: str, low: int, n_tokens: int, count: Callable[[str], int]) -> str:
    """Return the longest prefix of at most `n_tokens` tokens; the first `low` characters fit."""
    high = len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if count(text[:middle]) <= n_tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low]
