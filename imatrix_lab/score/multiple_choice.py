"""Multiple choice by likelihood: the log-probability of each option after its context.

Raw sums with counts of tokens and bytes: means per token and per byte, and the choice among
single letters, follow by arithmetic.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import BadText
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.score import choice_layout
from imatrix_lab.score.choice_layout import ALIGN, FIRST, PREFIX, Unit
from imatrix_lab.score.engine import Engine
from imatrix_lab.score.job import NOT_FINITE, Setup
from imatrix_lab.types import ChoiceItem, ChoiceScores, Model


def score(
    tools: Toolchain, model: Model, items: Iterable[ChoiceItem], setup: Setup, progress: Progress
) -> Iterator[ChoiceScores]:
    """Yield the scores of items, in their order.

    Items with the same prefix are scored together, so that it is decoded once. On a CPU an item's
    scores depend only on its own text, to the last bit: not on the batch, the rows in a decode,
    the threads, or the other items.
    """
    items = list(items)
    waiting: dict[int, ChoiceScores] = {}
    turn = 0
    # cells for the longest prompt, and a decode of items beside it
    n_ctx = setup.engine.n_ctx + setup.engine.n_batch + 2 * ALIGN
    settings = dataclasses.replace(setup.engine, n_ctx=n_ctx)
    with (
        progress.task(f"choices, {model.label}", len(items), "items") as task,
        Vocabulary(tools, model.path) as vocabulary,
        Engine(tools, setup.kernel, model, settings, Interruptible()) as engine,
    ):
        task.update(0)  # no note: nothing was done by an earlier run
        scorer = _Scorer(engine, vocabulary, setup)
        for done, (number, scores) in enumerate(scorer.run(items), 1):
            task.update(done, f"{engine.n_tokens / max(engine.seconds, 1e-9):.0f} tokens/s")
            waiting[number] = scores
            while turn in waiting:
                yield waiting.pop(turn)
                turn += 1


@dataclass
class _Pending:
    """An item whose scores are being summed; `n_left` options are not scored yet."""

    item: ChoiceItem
    n_tokens: tuple[int, ...]
    sums: np.ndarray
    n_left: int

    def scores(self) -> ChoiceScores:
        if not np.isfinite(self.sums).all():
            return _failed(self.item, NOT_FINITE)
        n_bytes = tuple(len(option.encode()) for option in self.item.options)
        return ChoiceScores(self.item.id, tuple(map(float, self.sums)), self.n_tokens, n_bytes)


def _failed(item: ChoiceItem, error: str) -> ChoiceScores:
    return ChoiceScores(item.id, (), (), (), error)


class _Scorer:
    """Scores items on an engine.

    _prefix : the prefix in the engine's memory; None when the memory must be wiped.
    _first : the first option's sequence; 0 for models that cannot share, which run one option
        at a time, from its first token on.
    """

    def __init__(self, engine: Engine, vocabulary: Vocabulary, setup: Setup):
        self._engine, self._setup, self._tokens = engine, setup, vocabulary.tokens
        self._prefix: tuple[int, ...] | None = None
        n = setup.engine.sequences_max
        self._first, self._n_sequences = (FIRST, n - FIRST) if n > FIRST else (0, 1)

    def run(self, items: Sequence[ChoiceItem]) -> Iterator[tuple[int, ChoiceScores]]:
        """Yield scores with the items' numbers: prefix by prefix, then items without one."""
        groups: dict[str, list[int]] = {}
        for number, item in enumerate(items):
            groups.setdefault(item.prefix, []).append(number)
        others: list[int] = []
        for text, numbers in groups.items():
            # the text after a prefix may change its last two tokens: they go with the items
            prefix = tuple(self._tokens(text)[:-2]) if self._first else ()
            yield from self._group(items, numbers, prefix, others)
        yield from self._group(items, others, (), [])

    def _group(
        self,
        items: Sequence[ChoiceItem],
        numbers: Sequence[int],
        prefix: tuple[int, ...],
        others: list[int],
    ) -> Iterator[tuple[int, ChoiceScores]]:
        """Yield the scores of items that begin with `prefix`; add the rest to `others`."""
        engine = self._setup.engine
        cells = engine.n_ctx + engine.n_batch + ALIGN - len(prefix)
        pending: dict[int, _Pending] = {}
        ready: list[tuple[int, ChoiceScores]] = []

        def units() -> Iterator[Unit]:
            for number in numbers:
                item = items[number]
                try:
                    tokenized = choice_layout.tokenized(item, prefix, self._tokens, engine.n_ctx)
                except BadText as error:
                    ready.append((number, _failed(item, error.what)))
                    continue
                if tokenized.prefix != prefix:
                    others.append(number)
                    continue
                lengths = tuple(len(option) - tokenized.start for option in tokenized.options)
                pending[number] = _Pending(item, lengths, np.zeros(len(lengths)), len(lengths))
                yield from choice_layout.units(number, tokenized, cells, self._n_sequences)

        limits = engine.n_batch, engine.n_rows, self._n_sequences
        for group in choice_layout.rounds(units(), *limits):
            for unit, sums in zip(group, self._summed(prefix, group), strict=True):
                item = pending[unit.item]
                item.sums[: len(sums)] += sums
                item.n_left -= unit.n_sequences
                if not item.n_left:
                    ready.append((unit.item, pending.pop(unit.item).scores()))
            yield from ready
            ready.clear()
        yield from ready

    def _summed(self, prefix: tuple[int, ...], group: Sequence[Unit]) -> list[np.ndarray]:
        """Return each unit's log-probabilities by option.

        A value that is not finite in one sequence spoils others, through what attention masks:
        then each unit is run alone, in memory that is wiped before and after.
        """
        sums = self._decoded(prefix, group)
        if all(np.isfinite(s).all() for s in sums):
            return sums
        self._prefix = None
        return sums if len(group) == 1 else [self._summed(prefix, [u])[0] for u in group]

    def _decoded(self, prefix: tuple[int, ...], group: Sequence[Unit]) -> list[np.ndarray]:
        self._load_prefix(prefix)
        settings, kernel = self._setup.engine, self._setup.kernel
        sequences = range(self._first, self._first + sum(u.n_sequences for u in group))
        if prefix:
            for sequence in sequences:
                self._engine.share(PREFIX, sequence)
        starts = np.cumsum([0] + [len(u.block.tokens) for u in group])[:-1]
        rows = np.concatenate([u.rows + n for u, n in zip(group, starts, strict=True)])
        targets = np.concatenate([u.targets for u in group])
        values = np.empty(len(rows))
        merged = choice_layout.merged(group, self._first)
        for place, decode in choice_layout.cut(merged, settings.n_batch, settings.n_rows):
            logits = self._engine.decode(decode)
            here = (rows >= place.start) & (rows < place.stop)
            if here.any():
                row = (np.cumsum(decode.outputs) - 1)[rows[here] - place.start]
                values[here] = logits[row, targets[here]] - kernel.rows(logits).log_sum[row]
        for sequence in sequences:
            self._engine.forget(sequence)
        parts = np.split(values, np.cumsum([len(u.rows) for u in group])[:-1])
        return [np.bincount(u.options, part) for u, part in zip(group, parts, strict=True)]

    def _load_prefix(self, prefix: tuple[int, ...]) -> None:
        """Make a prefix all that is in the engine's memory."""
        if self._prefix != prefix:
            self._engine.begin()
            settings, block = self._setup.engine, choice_layout.prefix_block(prefix)
            for _, decode in choice_layout.cut(block, settings.n_batch, settings.n_rows):
                self._engine.decode(decode)
            self._prefix = prefix
