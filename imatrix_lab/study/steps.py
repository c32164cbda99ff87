"""A recipe as steps: texts, imatrices, merges, quants, scores, losses, tasks, tidying.

Steps of a model begin with its label: ``demo.imatrix.nb.1``, ``demo.quant.nb.1.Q4_K_M``. What
each does is in `work`; here is what stands on what.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from imatrix_lab.core import config, format
from imatrix_lab.core.files import sha256_file
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp.toolchain import cores
from imatrix_lab.study import actions, calibrations
from imatrix_lab.study import validate as asked
from imatrix_lab.study import validate as check
from imatrix_lab.study.actions import Quant, Text
from imatrix_lab.study.calibrations import Calibration, Single
from imatrix_lab.study.context import Shared, logits_bytes
from imatrix_lab.study.graph import Step
from imatrix_lab.study.recipe import NONE, Recipe, Task
from imatrix_lab.types import Model, TextOptions

HELDOUT_TOKENS = 1024
"""Of the text of a language that is only scored on: what is held out does not depend on it."""
SMALL_BYTES = 1 << 29
DOCUMENT_TOKENS, HELDOUT_ALL_TOKENS, ITEM_TOKENS = 300, 15_000, 200
"""Usual sizes, for the time left alone."""
QUANT_TOKENS, LOSS_TOKENS, TEXT_TOKENS = 2_000, 300, 500
"""What takes about as long as so many tokens through the model; the same use."""


def steps(shared: Shared) -> tuple[Step, ...]:
    """Return the steps of a study; what a step stands on comes before it.

    Raises
    ------
    UsageError : a quant is larger than the disk that may be used.
    """
    found: list[Step] = []
    before = ""
    for model in shared.models:
        ours = _OfModel(shared, model)
        found += ours.texts()
        found += ours.imatrices()
        for number, batch in enumerate(ours.batches, 1):
            found += ours.batch(batch, number, before)
            before = found[-1].id if shared.recipe.limits.disk_gib else ""
        found += ours.originals()
    return _distinct(found)


def _distinct(found: Sequence[Step]) -> tuple[Step, ...]:
    """Return steps, of which no two have one id: records are kept by it."""
    twice = [name for name, n in Counter(step.id for step in found).items() if n > 1]
    if twice:
        raise ValueError(f"several steps are called {twice[0]}")
    return tuple(found)


def batches(shared: Shared, model: Model, quants: Sequence[Quant]) -> list[list[Quant]]:
    """Return quants in the batches that fit on the disk, in order."""
    limit = int(shared.recipe.limits.disk_gib * 2**30)
    if shared.keeps_quants or not limit:
        return [list(quants)]
    found: list[list[Quant]] = [[]]
    taken = 0
    for quant in quants:
        size = shared.sizes[model.label, quant.type]
        if size > limit:
            raise UsageError(
                f"{quant.type} of {model.label} takes {format.size(size)}, more than the"
                f" {format.size(limit)} of limits.disk_gib",
                fix="a larger disk_gib, or 0 for no limit",
            )
        if taken + size > limit:
            found.append([])
            taken = 0
        found[-1].append(quant)
        taken += size
    return found


class _OfModel:
    """The steps of one model."""

    def __init__(self, shared: Shared, model: Model):
        self.shared, self.model, self.recipe = shared, model, shared.recipe
        self.calibrations = calibrations.calibrations(self.recipe)
        self.singles = calibrations.singles(self.calibrations)
        self.languages = {s.language: s for s in self.singles if not s.is_control}
        self.tasks = asked.names(self.recipe)
        many = len(shared.models) > 1
        self.of = f" of {model.label}" if many else ""
        quants = [self._quant(c, kind) for kind in self.recipe.types for c in self.calibrations]
        self.batches = batches(shared, model, quants)
        self.teacher = self._teacher()

    def _id(self, *names: str) -> str:
        return ".".join((self.model.label, *names))

    def _quant(self, calibration: Calibration, kind: str) -> Quant:
        imatrix = "" if calibration.kind == NONE else self._id("imatrix", calibration.id)
        return Quant(calibration, kind, imatrix, self._id("quant", calibration.id, kind))

    def _teacher(self) -> str:
        """Return whether models are in memory together: decided once, for numbers that compare.

        How much a GPU has is not known: unless it is said, one model is there at a time.
        """
        fits = self._scoring_bytes(self.batches[0]) <= self.shared.memory_bytes()
        is_known = self.shared.tools.backend == "cpu" or self.recipe.limits.memory_gib > 0
        return "live" if len(self.batches) == 1 and fits and is_known else "cached"

    def _scoring_bytes(self, quants: Sequence[Quant]) -> int:
        """Return the memory that a reference and quants take together."""
        sizes = [self.shared.sizes[self.model.label, q.type] for q in quants]
        logits = (1 + len(sizes)) * logits_bytes(self.model, self.shared)
        return self.model.facts.size_bytes + sum(sizes) + logits

    def _base(self) -> dict[str, object]:
        """Return what determines everything of this model."""
        return {"model": self.model.sha256, "toolchain": self.shared.tools.signature()}

    # -- texts and imatrices

    def texts(self) -> Iterator[Step]:
        """Yield texts to calibrate on, and those that are only scored on."""
        said = self.recipe.calibration
        options = TextOptions(seed=self.recipe.seed, n_samples=said.samples)
        for single in self.singles:
            one = dataclasses.replace(options, sample=single.sample)
            first = self._id("corpus", f"{single.label}.1")
            yield self._text(self._id("corpus", single.id), _name(single, self.recipe), single.word,
                             said.tokens, one, () if single.sample == 1 else (first,))  # fmt: skip
        for code in self.recipe.evaluation.texts:
            if code not in self.languages and "=" not in code:
                plain = TextOptions(seed=self.recipe.seed)
                yield self._text(self._id("corpus", code), code, code, HELDOUT_TOKENS, plain, ())

    def _text(
        self, name: str, what: str, word: str, n_tokens: int, options: TextOptions,
        needs: tuple[str, ...],
    ) -> Step:  # fmt: skip
        inputs = {"text": word, "n_tokens": n_tokens, "options": config.plain(options)}
        return Step(
            name, "corpus", f"text {what}{self.of}",
            partial(actions.corpus, self.shared, self.model, word, n_tokens, options),
            self._base() | inputs, needs=needs, cost=TEXT_TOKENS, memory_bytes=SMALL_BYTES,
        )  # fmt: skip

    def imatrices(self) -> Iterator[Step]:
        """Yield imatrices by running the model, then those that are merged of them."""
        tokens = self.recipe.calibration.tokens
        window = 4 * 4 * 512 * self.model.facts.n_vocab
        for single in self.singles:
            text = self._id("corpus", single.id)
            yield Step(
                self._id("imatrix", single.id), "imatrix",
                f"imatrix {_name(single, self.recipe)}{self.of}",
                partial(actions.imatrix, self.shared, self.model, single, text),
                needs=(text,), is_target=True, cost=tokens, cores=cores(),
                memory_bytes=self.model.facts.size_bytes + window,
            )  # fmt: skip
        for wanted in self.calibrations:
            if wanted.is_merged:
                parts = {s.id: self._id("imatrix", s.id) for s, _ in wanted.parts}
                shares = {s.id: weight for s, weight in wanted.parts}
                yield Step(
                    self._id("imatrix", wanted.id), "merge", f"imatrix {wanted.id}{self.of}",
                    partial(actions.merged, self.shared, self.model, wanted, parts),
                    {"by": wanted.by, "shares": shares}, needs=tuple(parts.values()),
                    is_target=True, memory_bytes=SMALL_BYTES,
                )  # fmt: skip

    # -- quants and what is measured on them

    def batch(self, quants: Sequence[Quant], number: int, before: str) -> list[Step]:
        """Return the steps of quants that are there at a time; the last may tidy them away."""
        suffix = (str(number),) if len(self.batches) > 1 else ()
        found = [self._quantize(q, before) for q in quants]
        consumers = [*self._scores(quants, suffix), *self._losses(quants)]
        for task in self.recipe.tasks:
            consumers += [self._answers(task, q) for q in quants]
        if number == 1:
            consumers = [*self._items(), *consumers]
        found += consumers
        if not self.shared.keeps_quants:
            ids = tuple(step.id for step in found)
            found.append(Step(
                self._id("tidy", str(number)), "tidy", f"removing quants{self.of}",
                partial(actions.tidy, self.shared, tuple(quants)), after=ids, is_tidying=True,
            ))  # fmt: skip
        return found

    def _quantize(self, quant: Quant, before: str) -> Step:
        needs = (quant.imatrix_step,) if quant.imatrix_step else ()
        return Step(
            quant.step, "quant", f"quantize {quant.calibration.id} {quant.type}{self.of}",
            partial(actions.quant, self.shared, self.model, quant),
            self._base() | {"type": quant.type}, needs=needs,
            after=(before,) if before else (), is_target=self.shared.keeps_quants,
            cost=QUANT_TOKENS, cores=cores(), memory_bytes=max(SMALL_BYTES, self._largest_bytes()),
        )  # fmt: skip

    def _largest_bytes(self) -> int:
        """Return what llama-quantize needs for the largest matrix, in float32 twice."""
        return 2 * 4 * self.model.facts.n_vocab * self.model.facts.channels

    def _scores(self, quants: Sequence[Quant], suffix: tuple[str, ...]) -> Iterator[Step]:
        said = self.recipe.evaluation
        together = self.teacher == "live"
        memory = self._scoring_bytes(quants if together else quants[:1])
        documents = said.documents
        tokens = documents * DOCUMENT_TOKENS if documents else HELDOUT_ALL_TOKENS
        for word in said.texts:
            text = self._text_of(word)
            file = {"file_sha256": sha256_file(text.path)} if text.path else {}
            inputs = {**config.plain(said), "texts": text.label, "teacher": self.teacher, **file}
            yield Step(
                self._id("score", text.label, *suffix), "score",
                " ".join(("score", text.label, *suffix)) + self.of,
                partial(actions.score, self.shared, self.model, text, tuple(quants), self.teacher),
                self._base() | inputs, needs=(text.step,) if text.step else (),
                uses=tuple(q.step for q in quants), is_target=True,
                cost=tokens * (1 + len(quants)), cores=cores(), memory_bytes=memory,
            )  # fmt: skip

    def _text_of(self, word: str) -> Text:
        label, named, file = word.partition("=")
        if named:
            return Text(label, path=Path(file))
        name = f"{word}.1" if word in self.languages else word
        return Text(word, step=self._id("corpus", name))

    def _losses(self, quants: Sequence[Quant]) -> Iterator[Step]:
        samples: dict[str, list[str]] = {}
        for single in self.singles:
            if not single.is_control:
                step = self._id("imatrix", single.id)
                samples.setdefault(single.language, []).append(step)
        if not samples:
            return
        for quant in quants:
            yield Step(
                self._id("loss", quant.calibration.id, quant.type), "loss",
                f"predicted loss {quant.calibration.id} {quant.type}{self.of}",
                partial(actions.losses, self.shared, self.model, quant, samples),
                needs=(quant.step,), uses=tuple(s for those in samples.values() for s in those),
                is_target=True, cost=LOSS_TOKENS, cores=cores(), memory_bytes=SMALL_BYTES,
            )  # fmt: skip

    # -- tasks

    def originals(self) -> Iterator[Step]:
        """Yield the tasks on the original."""
        for task in self.recipe.tasks:
            yield self._answers(task, None)

    def _items(self) -> Iterator[Step]:
        for task in self.recipe.tasks:
            languages = check.languages_of(task, self.recipe)
            yield Step(
                self._items_id(task), "items", f"items of {self.tasks[task]}{self.of}",
                partial(actions.items, self.shared, task, languages),
                {"task": asked.inputs(task, languages)}, memory_bytes=SMALL_BYTES,
            )  # fmt: skip

    def _items_id(self, task: Task) -> str:
        return self._id("items", self.tasks[task])

    def _answers(self, task: Task, quant: Quant | None) -> Step:
        languages = check.languages_of(task, self.recipe)
        who = (quant.calibration.id, quant.type) if quant else ("original",)
        needs = (self._items_id(task), *((quant.step,) if quant else ()))
        size = (
            self.shared.sizes[self.model.label, quant.type]
            if quant
            else (self.model.facts.size_bytes)
        )
        return Step(
            self._id("task", self.tasks[task], *who), "task",
            f"{' '.join((self.tasks[task], *who))}{self.of}",
            partial(actions.answers, self.shared, self.model, task, languages,
                    quant.step if quant else ""),
            self._base(), needs=needs, is_target=True,
            cost=(task.limit or 1000) * len(languages) * ITEM_TOKENS, cores=cores(),
            memory_bytes=size + logits_bytes(self.model, self.shared) + SMALL_BYTES,
        )  # fmt: skip


def _name(single: Single, recipe: Recipe) -> str:
    n = recipe.calibration.samples
    return f"{single.label} {single.sample}/{n}" if n > 1 else single.label
