"""From documents to one calibration text, of which every prefix is balanced.

llama-imatrix cuts the text into windows and, with ``--chunks``, takes a prefix. So documents
are kept in blocks of at least one window, a source's blocks come in seeded order, and the
sources take turns by how far each is behind its share.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from imatrix_lab.corpus.documents import JOINT
from imatrix_lab.types import Document

BLOCK_TOKENS = 1024
"""Two windows of llama-imatrix as it comes."""


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
    runs: list[list[int]] = [[]]
    for i in range(len(documents)):
        if sum(sizes[j] for j in runs[-1]) >= BLOCK_TOKENS:
            runs.append([])
        runs[-1].append(i)
    if len(runs) > 1 and sum(sizes[j] for j in runs[-1]) < BLOCK_TOKENS:
        rest = runs.pop()
        runs[-1] += rest
    return [
        Block(tuple(documents[i] for i in run), tuple(sizes[i] for i in run)) for run in runs if run
    ]


def shuffled(lane: Lane, seed: int) -> Lane:
    """Return a lane with its blocks in the order that a seed gives."""
    order = list(lane.blocks)
    random.Random(f"{seed} {lane.name}").shuffle(order)
    return Lane(lane.name, tuple(order))


def deal(lanes: Sequence[Lane], k: int, n_samples: int) -> list[Lane]:
    """Return the lanes of sample `k` (from 1) of `n_samples` that share no document."""
    return [Lane(lane.name, lane.blocks[k - 1 :: n_samples]) for lane in lanes]


def redraw(lanes: Sequence[Lane], quotas: Sequence[int], k: int, seed: int) -> list[Lane]:
    """Return bootstrap lanes: blocks drawn with replacement until each has its quota."""
    found = []
    for lane, quota in zip(lanes, quotas, strict=True):
        rng = random.Random(f"{seed} {k} {lane.name}")
        drawn: list[Block] = []
        while sum(b.n_tokens for b in drawn) < quota:
            drawn.append(rng.choice(lane.blocks))
        found.append(Lane(lane.name, tuple(drawn)))
    return found


def shares(available: Sequence[int], n_tokens: int) -> list[int]:
    """Return what each source gives towards `n_tokens`: equal parts, the short ones all they have.

    Where all together have less, all of it.
    """
    given = [0] * len(available)
    left = n_tokens
    for rank, i in enumerate(sorted(range(len(available)), key=lambda i: available[i])):
        given[i] = min(available[i], -(-left // (len(available) - rank)))
        left -= given[i]
    return given


def interleave(
    lanes: Sequence[Lane], quotas: Sequence[int], count: Callable[[str], int]
) -> Iterator[tuple[str, Document]]:
    """Yield (lane, document) so that every prefix has the quotas' proportions.

    The lane furthest behind its share is next, the first of them where they tie; the document
    that meets a lane's quota is cut there.
    """
    at, taken = [0] * len(lanes), [0] * len(lanes)
    while True:
        unfinished = [
            i for i, lane in enumerate(lanes)
            if at[i] < len(lane.blocks) and taken[i] < quotas[i]
        ]  # fmt: skip
        if not unfinished:
            return
        i = min(unfinished, key=lambda i: taken[i] / quotas[i])
        block = lanes[i].blocks[at[i]]
        at[i] += 1
        for document, size in zip(block.documents, block.sizes, strict=True):
            spare = quotas[i] - taken[i]
            if spare <= 0:
                break
            if size > spare:
                text = _cut(document.text, 0, spare, count)
                document = replace(document, text=text)  # noqa: PLW2901
            taken[i] += size
            if document.text:
                yield lanes[i].name, document


def joined(documents: Sequence[Document]) -> str:
    """Return the documents as one text, blank lines between."""
    return JOINT.join(d.text for d in documents)


def within_budget(
    documents: Sequence[Document], n_tokens: int, count: Callable[[str], int]
) -> tuple[str, list[Document]]:
    """Return (text, documents used) for a token budget.

    The text is the documents in order, joined by blank lines, cut in the last one so that it
    has exactly `n_tokens` tokens where the tokenizer allows it, never more; all of it where
    there is less.

    Parameters
    ----------
    count : tokens of a text in the target model's vocabulary, BOS included.
    """
    estimate = 0
    for i, document in enumerate(documents, 1):
        estimate += count(document.text + JOINT)
        # documents count a little more alone than joined, so only near the budget look closely
        if estimate >= n_tokens and count(text := joined(documents[:i])) >= n_tokens:
            return _shortened(text, len(document.text), n_tokens, count), list(documents[:i])
    return joined(documents), list(documents)


def _shortened(text: str, n_last: int, n_tokens: int, count: Callable[[str], int]) -> str:
    """Return a text without the end of its last `n_last` characters that is over the budget.

    The last document is cut by its own tokens, and the cut corrected by what the whole then
    has: two or three counts of the whole, where a search over it would take a dozen.
    """
    before, last = text[:-n_last], text[-n_last:]
    wanted = n_tokens - count(before)
    for _ in range(4):
        shorter = before + _cut(last, 0, wanted, count)
        off = n_tokens - count(shorter)
        if off == 0:
            return shorter
        wanted += off
    fits = len(before) if count(before) <= n_tokens else 0
    return _cut(text, fits, n_tokens, count)


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
