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
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.score import choice_layout
from imatrix_lab.score.choice_layout import ALIGN, FIRST, HELD, Unit
from imatrix_lab.score.engine import Engine, Interruptible
from imatrix_lab.score.job import NOT_FINITE, Setup
from imatrix_lab.types import ChoiceItem, ChoiceScores, Model


def score(
    toolchain: Toolchain,
    model: Model,
    items: Iterable[ChoiceItem],
    settings: Setup,
    progress: Progress,
) -> Iterator[ChoiceScores]:
    """Yield the scores of items, in their order.

    Items with the same prefix are scored together, so that it is decoded once. On a CPU an item's
    scores depend on its own text alone, to the last bit: not on the batch, the rows a decode, the
    threads, or what else is scored.

    Raises
    ------
    BadModel : llama.cpp cannot load the model.
    """
    asked = list(items)
    waiting: dict[int, ChoiceScores] = {}
    turn = 0
    with (
        progress.task(f"choices, {model.label}", len(asked), "items") as task,
        Vocabulary(toolchain, model.path) as vocabulary,
        _engine(toolchain, model, settings) as engine,
    ):
        scorer = _Scorer(engine, vocabulary, settings)
        task.update(0)  # without a note: nothing was done by an earlier run
        for done, (number, scores) in enumerate(scorer.run(asked), 1):
            task.update(done, f"{engine.n_tokens / max(engine.seconds, 1e-9):.0f} tokens/s")
            waiting[number] = scores
            while turn in waiting:
                yield waiting.pop(turn)
                turn += 1


def _engine(toolchain: Toolchain, model: Model, setup: Setup) -> Engine:
    """Return the model with cells for the longest prompt and a decode of items beside it."""
    n_ctx = setup.engine.n_ctx + setup.engine.n_batch + 2 * ALIGN
    settings = dataclasses.replace(setup.engine, n_ctx=n_ctx)
    return Engine(toolchain, setup.kernel, model, settings, Interruptible())


@dataclass
class _Open:
    """An item whose scores are being summed; `left` options are not yet."""

    item: ChoiceItem
    n_tokens: tuple[int, ...]
    sums: np.ndarray
    left: int

    def scores(self) -> ChoiceScores:
        if not np.isfinite(self.sums).all():
            return ChoiceScores(self.item.id, (), (), (), NOT_FINITE)
        n_bytes = tuple(len(option.encode()) for option in self.item.options)
        return ChoiceScores(self.item.id, tuple(map(float, self.sums)), self.n_tokens, n_bytes)


class _Scorer:
    """Scores items on an engine.

    Attributes
    ----------
    _held : the prefix that the engine's memory begins with; None when that is to be wiped.
    _first : the first option's sequence; 0 for models that cannot share, which run one option
        at a time, from its first token on.
    """

    def __init__(self, engine: Engine, vocabulary: Vocabulary, setup: Setup):
        self._engine, self._setup, self._tokens = engine, setup, vocabulary.tokens
        self._held: tuple[int, ...] | None = None
        shares = setup.engine.sequences_max > FIRST
        self._first = FIRST if shares else 0
        self._n_sequences = setup.engine.sequences_max - FIRST if shares else 1

    def run(self, items: Sequence[ChoiceItem]) -> Iterator[tuple[int, ChoiceScores]]:
        """Yield scores with the items' numbers: prefix by prefix, then what holds none."""
        groups: dict[str, list[int]] = {}
        for number, item in enumerate(items):
            groups.setdefault(item.prefix, []).append(number)
        others: list[int] = []
        for prefix, numbers in groups.items():
            held = choice_layout.held(self._tokens(prefix)) if self._first else ()
            yield from self._group(items, numbers, held, others)
        yield from self._group(items, others, (), [])

    def _group(
        self,
        items: Sequence[ChoiceItem],
        numbers: Sequence[int],
        held: tuple[int, ...],
        others: list[int],
    ) -> Iterator[tuple[int, ChoiceScores]]:
        """Yield the scores of items that begin with `held`; add the rest of them to `others`."""
        engine = self._setup.engine
        cells = engine.n_ctx + engine.n_batch + ALIGN - len(held)
        open_items: dict[int, _Open] = {}
        ready: list[tuple[int, ChoiceScores]] = []

        def units() -> Iterator[Unit]:
            for number in numbers:
                item = items[number]
                try:
                    found = choice_layout.tokenized(item, held, self._tokens, engine.n_ctx)
                except BadText as error:
                    ready.append((number, ChoiceScores(item.id, (), (), (), error.what)))
                    continue
                if found.held != held:
                    others.append(number)
                    continue
                n = len(item.options)
                open_items[number] = _Open(item, found.n_tokens(), np.zeros(n), n)
                yield from choice_layout.units(number, found, cells, self._n_sequences)

        for group in choice_layout.rounds(
            units(), engine.n_batch, engine.n_rows, self._n_sequences
        ):
            for unit, sums in zip(group, self._summed(held, group), strict=True):
                item = open_items[unit.item]
                item.sums[: len(sums)] += sums
                item.left -= unit.n_sequences
                if not item.left:
                    ready.append((unit.item, open_items.pop(unit.item).scores()))
            yield from ready
            ready.clear()
        yield from ready

    def _summed(self, held: tuple[int, ...], group: Sequence[Unit]) -> list[np.ndarray]:
        """Return each unit's log-probabilities by option.

        What is not finite in one sequence makes others so, through what attention masks: then
        each unit is run by itself, in memory that is wiped before and after.
        """
        found = self._decoded(held, group)
        if all(np.isfinite(f).all() for f in found):
            return found
        self._held = None
        if len(group) == 1:
            return found
        return [self._summed(held, [unit])[0] for unit in group]

    def _decoded(self, held: tuple[int, ...], group: Sequence[Unit]) -> list[np.ndarray]:
        self._hold(held)
        settings, kernel = self._setup.engine, self._setup.kernel
        last = self._first + sum(u.n_sequences for u in group)
        if held:
            for sequence in range(self._first, last):
                self._engine.share(HELD, sequence)
        starts = np.cumsum([0] + [len(u.block.tokens) for u in group])[:-1]
        rows = np.concatenate([u.rows + n for u, n in zip(group, starts, strict=True)])
        targets = np.concatenate([u.targets for u in group])
        values = np.empty(len(rows))
        whole = choice_layout.joined(group, self._first)
        for place, decode in choice_layout.cut(whole, settings.n_batch, settings.n_rows):
            logits = self._engine.decode(decode)
            here = (rows >= place.start) & (rows < place.stop)
            if here.any():
                row = (np.cumsum(decode.wanted) - 1)[rows[here] - place.start]
                values[here] = logits[row, targets[here]] - kernel.rows(logits).log_sum[row]
        for sequence in range(self._first, last):
            self._engine.forget(sequence)
        parts = np.split(values, np.cumsum([len(u.rows) for u in group])[:-1])
        return [np.bincount(u.options, part) for u, part in zip(group, parts, strict=True)]

    def _hold(self, held: tuple[int, ...]) -> None:
        """Have the engine's memory begin with a prefix, and hold nothing else."""
        if self._held == held:
            return
        self._engine.begin()
        if held:
            settings = self._setup.engine
            for _, decode in choice_layout.cut(
                choice_layout.prefix_block(held), settings.n_batch, settings.n_rows
            ):
                self._engine.decode(decode)
        self._held = held
