"""Which tokens of a multiple-choice item are decoded, and where: plans made of tokens alone.

An item's options are sequences that share the tokens before them; the few-shot prefix is held
for all items. A round of items is one decode, most often:

    cells   held prefix | item: what its options share | option | option | … | next item …

llama.cpp adds up attention's terms in the order of its cells. So that an item gives the same bits
wherever it lies and whatever lies beside it, the prefix and each item begin at a multiple of
`ALIGN` cells, and no decode has fewer tokens or rows than `STEP_MIN`.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from imatrix_lab.errors import BadText
from imatrix_lab.score.windows import STEP_MIN, Decode
from imatrix_lab.types import ChoiceItem

ALIGN = STEP_MIN
HELD, FILLER, FIRST = 0, 1, 2
"""Sequences: the held prefix, what fills it up to `ALIGN`, and the first option's."""
_SEAM = 2
"""Tokens at the end of a prefix that the text after it may change; they go with the items."""


@dataclass(frozen=True)
class Tokenized:
    """An item's tokens.

    Attributes
    ----------
    held : tokens of the prefix that are decoded once for many items; none, if this item's differ.
    options : prefix, context and option of each, as one text.
    start : index of the first token that is scored, the same for all options.
    """

    held: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    start: int

    def n_tokens(self) -> tuple[int, ...]:
        """Return how many tokens of each option are scored."""
        return tuple(len(option) - self.start for option in self.options)


def held(tokens: Sequence[int]) -> tuple[int, ...]:
    """Return what can be decoded once of a prefix."""
    return tuple(tokens[: max(0, len(tokens) - _SEAM)])


def tokenized(
    item: ChoiceItem, prefix: tuple[int, ...], tokens: Callable[[str], list[int]], n_ctx: int
) -> Tokenized:
    """Return an item's tokens.

    Context and option are tokenized as one text, as a model meets them. An option whose first
    letters join the context's last token is scored from that token on, and so are the others of
    the item: all are conditional on the same text.

    Parameters
    ----------
    prefix : see `held`.

    Raises
    ------
    BadText : nothing to score, or more tokens than the context has.
    """
    text = item.prefix + item.context
    before = tokens(text)
    whole = [tuple(tokens(text + option)) for option in item.options]
    if not whole:
        raise BadText("the item has no options")
    longest = max(map(len, whole))
    if longest > n_ctx:
        raise BadText(f"prompt longer than the context: {longest} tokens of {n_ctx}")
    start = min(common([before, option]) for option in whole)
    if any(len(option) == start for option in whole):
        raise BadText("an option is empty")
    if not start:
        raise BadText("no token before the options to predict them from")
    begins = all(option[: len(prefix)] == prefix for option in whole) and len(prefix) < start
    return Tokenized(prefix if begins else (), tuple(whole), start)


def common(lists: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all lists begin with alike."""
    n = 0
    for column in zip(*lists, strict=False):
        if any(token != column[0] for token in column):
            break
        n += 1
    return n


@dataclass(frozen=True)
class Unit:
    """Options of one item that are decoded together.

    Attributes
    ----------
    item : its number.
    block : the decode by itself, its sequences counted from 0; a multiple of `ALIGN` tokens.
    n_sequences : how many it has.
    rows, targets, options : int (n,), of each scored token: the index in the block that predicts
        it, the token, and the option it belongs to.
    """

    item: int
    block: Decode
    n_sequences: int
    rows: np.ndarray
    targets: np.ndarray
    options: np.ndarray


def units(number: int, item: Tokenized, cells: int, n_sequences: int) -> list[Unit]:
    """Return an item as one unit, or as several where its options need more than there is."""
    todo, found = [range(len(item.options))], []
    while todo:
        options = todo.pop()
        unit = _unit(number, item, options)
        if len(options) > 1 and (len(unit.block.tokens) > cells or len(options) > n_sequences):
            half = len(options) // 2
            todo += [options[half:], options[:half]]
        else:
            found.append(unit)
    return found


def _unit(number: int, item: Tokenized, options: range) -> Unit:
    whole = [item.options[i] for i in options]
    first = len(item.held)
    shared = min(common(whole), *(len(w) - 1 for w in whole))  # the last is only a target
    block = [(token, first + i, 0, len(whole)) for i, token in enumerate(whole[0][first:shared])]
    reads = []
    for i, option in enumerate(whole):
        begin = len(block) - shared
        block += [(option[j], j, i, 1) for j in range(shared, len(option) - 1)]
        for j in range(item.start, len(option)):
            row = j - 1 - first if j <= shared else begin + j - 1
            reads.append((row, option[j], options[i]))
    last, at, owner, span = block[-1]
    block += [(last, at + 1 + i, owner, span) for i in range(-len(block) % ALIGN)]
    tokens, positions, sequences, spans = np.array(block, np.int32).T
    rows, targets, owners = np.array(reads).T
    wanted = np.zeros(len(block), bool)
    wanted[rows] = True
    return Unit(
        number,
        Decode(tokens, positions, sequences, spans, wanted),
        len(whole),
        rows,
        targets,
        owners,
    )


def rounds(
    found: Iterable[Unit], n_tokens: int, n_rows: int, n_sequences: int
) -> Iterator[list[Unit]]:
    """Yield units in order, as many as one decode can take; one that is too large is alone."""
    group: list[Unit] = []
    room, used = np.array([n_tokens, n_rows, n_sequences]), np.zeros(3, int)
    for unit in found:
        size = [len(unit.block.tokens), unit.block.wanted.sum(), unit.n_sequences]
        if group and (used + size > room).any():
            yield group
            group, used = [], np.zeros(3, int)
        group.append(unit)
        used = used + size
    if group:
        yield group


def joined(group: Sequence[Unit], first: int = FIRST) -> Decode:
    """Return the units as one decode, each with sequences of its own, from `first` on."""
    blocks = [unit.block for unit in group]
    counts = itertools.accumulate((u.n_sequences for u in group[:-1]), initial=first)
    return Decode(
        np.concatenate([b.tokens for b in blocks]),
        np.concatenate([b.positions for b in blocks]),
        np.concatenate([b.sequences + n for b, n in zip(blocks, counts, strict=True)]),
        np.concatenate([b.spans for b in blocks]),
        np.concatenate([b.wanted for b in blocks]),
    )


def prefix_block(tokens: tuple[int, ...]) -> Decode:
    """Return the decode of a held prefix: no row of it is wanted."""
    n, n_filler = len(tokens), -len(tokens) % ALIGN
    return Decode(
        np.array([*tokens, *tokens[:1] * n_filler], np.int32),
        np.array([*range(n), *range(n_filler)], np.int32),
        np.array([HELD] * n + [FILLER] * n_filler, np.int32),
        np.ones(n + n_filler, np.int32),
        np.zeros(n + n_filler, bool),
    )


def cut(whole: Decode, n_batch: int, n_rows: int) -> Iterator[tuple[slice, Decode]]:
    """Yield a decode in pieces of at most `n_batch` tokens and `n_rows` rows, and their places.

    Pieces are multiples of `ALIGN` tokens, so none is short; if rows are wanted of one, there
    are at least `STEP_MIN`.
    """
    rows = np.concatenate([[0], np.cumsum(whole.wanted)])
    start, n = 0, len(whole.tokens)
    while start < n:
        end = min(start + ALIGN, n)
        while end < n and end + ALIGN - start <= n_batch:
            if rows[min(end + ALIGN, n)] - rows[start] > n_rows:
                break
            end = min(end + ALIGN, n)
        place = slice(start, end)
        wanted = whole.wanted[place].copy()
        if 0 < wanted.sum() < STEP_MIN:
            wanted[np.flatnonzero(~wanted)[: STEP_MIN - wanted.sum()]] = True
        yield place, Decode(
            whole.tokens[place], whole.positions[place], whole.sequences[place],
            whole.spans[place], wanted,
        )  # fmt: skip
        start = end
