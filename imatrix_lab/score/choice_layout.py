"""Which tokens of a multiple-choice item are decoded, and where in the model's memory.

An item's options are sequences that share the tokens before them; the few-shot prefix stays in
memory for all items. A round of items is usually one decode:

    cells   prefix | item: what its options share | option | option | … | next item …

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
PREFIX, FILLER, FIRST = 0, 1, 2  # sequences: the prefix, what fills up to ALIGN, the first option


@dataclass(frozen=True)
class Tokenized:
    """An item's tokens.

    prefix : tokens decoded once for many items; empty if this item begins otherwise.
    options : prefix, context and option of each, as one text.
    start : index of the first scored token, the same for all options.
    """

    prefix: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    start: int


def tokenized(
    item: ChoiceItem, prefix: tuple[int, ...], tokens: Callable[[str], list[int]], n_ctx: int
) -> Tokenized:
    """Return an item's tokens.

    Context and option are tokenized as one text, as a model reads them. An option whose first
    letters join the context's last token is scored from that token on, and so are the others of
    the item: all are conditional on the same text.

    Raises BadText: nothing to score, or more tokens than the context has.
    """
    text = item.prefix + item.context
    before = tokens(text)
    options = [tuple(tokens(text + option)) for option in item.options]
    if not options:
        raise BadText("the item has no options")
    longest = max(map(len, options))
    if longest > n_ctx:
        raise BadText(f"prompt longer than the context: {longest} tokens of {n_ctx}")
    start = min(common([before, option]) for option in options)
    if any(len(option) == start for option in options):
        raise BadText("an option is empty")
    if not start:
        raise BadText("no token before the options to predict them from")
    begins = all(o[: len(prefix)] == prefix for o in options) and len(prefix) < start
    return Tokenized(prefix if begins else (), tuple(options), start)


def common(lists: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all lists begin with."""
    columns = zip(*lists, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


@dataclass(frozen=True)
class Unit:
    """Options of one item that are decoded together.

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
    """Return an item as one unit, or several where its options need more than the memory has."""
    todo, result = [range(len(item.options))], []
    while todo:
        options = todo.pop()
        unit = _unit(number, item, options)
        if len(options) > 1 and (len(unit.block.tokens) > cells or len(options) > n_sequences):
            half = len(options) // 2
            todo += [options[half:], options[:half]]
        else:
            result.append(unit)
    return result


def _unit(number: int, item: Tokenized, options: range) -> Unit:
    texts = [item.options[i] for i in options]
    first = len(item.prefix)
    shared = min(common(texts), *(len(text) - 1 for text in texts))  # the last is only a target
    block = [(token, first + i, 0, len(texts)) for i, token in enumerate(texts[0][first:shared])]
    scored = []
    for i, text in enumerate(texts):
        begin = len(block) - shared
        block += [(text[j], j, i, 1) for j in range(shared, len(text) - 1)]
        for j in range(item.start, len(text)):
            row = j - 1 - first if j <= shared else begin + j - 1
            scored.append((row, text[j], options[i]))
    token, position, sequence, span = block[-1]
    block += [(token, position + 1 + i, sequence, span) for i in range(-len(block) % ALIGN)]
    rows, targets, owners = np.array(scored).T
    outputs = np.zeros(len(block), bool)
    outputs[rows] = True
    tokens, positions, sequences, spans = np.array(block, np.int32).T
    decode = Decode(tokens, positions, sequences, spans, outputs)
    return Unit(number, decode, len(texts), rows, targets, owners)


def rounds(
    units: Iterable[Unit], n_tokens: int, n_rows: int, n_sequences: int
) -> Iterator[list[Unit]]:
    """Yield units in order, as many as fit in one decode; one that is too large is alone."""
    group: list[Unit] = []
    limits, used = np.array([n_tokens, n_rows, n_sequences]), np.zeros(3, int)
    for unit in units:
        size = [len(unit.block.tokens), unit.block.outputs.sum(), unit.n_sequences]
        if group and (used + size > limits).any():
            yield group
            group, used = [], np.zeros(3, int)
        group.append(unit)
        used = used + size
    if group:
        yield group


def merged(group: Sequence[Unit], first: int = FIRST) -> Decode:
    """Return units as one decode, each with its own sequences, from `first` on."""
    starts = itertools.accumulate((u.n_sequences for u in group[:-1]), initial=first)
    blocks = [
        (u.block.tokens, u.block.positions, u.block.sequences + n, u.block.spans, u.block.outputs)
        for u, n in zip(group, starts, strict=True)
    ]
    return Decode(*map(np.concatenate, zip(*blocks, strict=True)))


def prefix_block(tokens: tuple[int, ...]) -> Decode:
    """Return the decode of a prefix, without any output row."""
    n, n_filler = len(tokens), -len(tokens) % ALIGN
    return Decode(
        np.array([*tokens, *tokens[:1] * n_filler], np.int32),
        np.array([*range(n), *range(n_filler)], np.int32),
        np.array([PREFIX] * n + [FILLER] * n_filler, np.int32),
        np.ones(n + n_filler, np.int32),
        np.zeros(n + n_filler, bool),
    )


def cut(whole: Decode, n_batch: int, n_rows: int) -> Iterator[tuple[slice, Decode]]:
    """Yield a decode in pieces of at most `n_batch` tokens and `n_rows` rows, and their places.

    Pieces are multiples of `ALIGN` tokens, and one with output rows has at least `STEP_MIN`.
    """
    rows = np.concatenate([[0], np.cumsum(whole.outputs)])
    start, n = 0, len(whole.tokens)
    while start < n:
        end = min(start + ALIGN, n)
        most = rows[start] + n_rows
        while end < n and end + ALIGN - start <= n_batch and rows[min(end + ALIGN, n)] <= most:
            end = min(end + ALIGN, n)
        place = slice(start, end)
        outputs = whole.outputs[place].copy()
        if 0 < outputs.sum() < STEP_MIN:
            outputs[np.flatnonzero(~outputs)[: STEP_MIN - outputs.sum()]] = True
        inputs = whole.tokens, whole.positions, whole.sequences, whole.spans
        tokens, positions, sequences, spans = (column[place] for column in inputs)
        yield place, Decode(tokens, positions, sequences, spans, outputs)
        start = end
