"""A recipe as steps: texts, imatrices, merges, quants, scores, losses, tasks, cleanup.

Steps of a model begin with its label: ``demo.imatrix.nb.1``, ``demo.quant.nb.1.Q4_K_M``. What
each does is in `actions`; here is what depends on what.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from imatrix_lab.core import config, format
from imatrix_lab.core.files import sha256_file
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp.toolchain import IN_MEMORY, cores
from imatrix_lab.study import actions, tasks
from imatrix_lab.study.actions import PlannedQuant, Quants, ScoredText
from imatrix_lab.study.calibrations import LANGUAGE, Calibration, calibrations, collected
from imatrix_lab.study.context import Shared, logits_bytes
from imatrix_lab.study.graph import Step
from imatrix_lab.study.recipe import NONE, Task
from imatrix_lab.types import Model, TextOptions

HELDOUT_TOKENS = 1024
"""Of the text of a language that is only scored on: what is held out does not depend on it."""
SMALL_BYTES = 1 << 29
DOCUMENT_TOKENS, HELDOUT_ALL_TOKENS, ITEM_TOKENS = 300, 15_000, 200  # for the time left
QUANT_TOKENS, LOSS_TOKENS, TEXT_TOKENS = 2_000, 300, 500  # taking as long, roughly
PARALLEL = ("imatrix", "quant", "score", "loss", "task")  # kinds of steps that use all cores
TARGETS = ("imatrix", "merge", "score", "loss", "task")  # kinds that are run for themselves


def steps(shared: Shared) -> tuple[Step, ...]:
    """Return the steps of a study, each after those it depends on."""
    every: list[Step] = []
    before = ""
    for model in shared.models:
        own = _ModelSteps(shared, model)
        every += [*own.texts(), *own.imatrices()]
        for number, batch in enumerate(own.batches, 1):
            every += own.batch(batch, number, before)
            before = every[-1].id if shared.recipe.limits.disk_gib else ""
        every += [own.answers(task, None) for task in shared.recipe.tasks]
    (name, n), *_ = Counter(step.id for step in every).most_common(1)
    if n > 1:  # records are kept by it
        raise ValueError(f"several steps are called {name}")
    return tuple(every)


def batches(shared: Shared, model: Model, quants: Quants) -> list[list[PlannedQuant]]:
    """Return quants in batches that fit on the disk, in order."""
    limit = int(shared.recipe.limits.disk_gib * 2**30)
    if shared.keeps_quants or not limit:
        return [list(quants)]
    result, used = [list[PlannedQuant]()], 0
    for quant in quants:
        size = shared.sizes[model.label, quant.type]
        if size > limit:
            limits = f"more than the {format.size(limit)} of limits.disk_gib"
            problem = f"{quant.type} of {model.label} takes {format.size(size)}, {limits}"
            raise UsageError(problem, fix="a larger disk_gib, or 0 for no limit")
        if used + size > limit:
            result, used = [*result, []], 0
        result[-1].append(quant)
        used += size
    return result


class _ModelSteps:
    def __init__(self, shared: Shared, model: Model):
        self.shared, self.model, self.recipe = shared, model, shared.recipe
        self.calibrations = calibrations(self.recipe)
        self.collected = collected(self.calibrations)
        self.languages = {c.language for c in self.collected if c.kind == LANGUAGE}
        self.tasks = tasks.names(self.recipe)
        self.base = {"model": model.sha256, "toolchain": shared.tools.signature()}
        """What determines everything of this model."""
        quants = [self._quant(c, type_) for type_ in self.recipe.types for c in self.calibrations]
        self.batches = batches(shared, model, quants)
        # decided once, so that numbers compare: are models in memory together? A GPU's memory is
        # not known unless the recipe gives it; then one model is loaded at a time
        fits = self._scoring_bytes(self.batches[0]) <= shared.memory_bytes()
        is_known = shared.tools.backend in IN_MEMORY or self.recipe.limits.memory_gib > 0
        self.base_logits = "live" if len(self.batches) == 1 and fits and is_known else "cached"

    def _id(self, *names: str) -> str:
        return ".".join((self.model.label, *names))

    def _action(self, action: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
        return partial(action, self.shared, self.model, *arguments)

    def _step(self, name: str, kind: str, what: str, run: Callable[..., Any], **rest: Any) -> Step:
        """Return a step; it takes little memory and is a target by its kind unless told."""
        what += f" of {self.model.label}" if len(self.shared.models) > 1 else ""
        usual = {"memory_bytes": SMALL_BYTES, "is_target": kind in TARGETS}
        usual["cores"] = cores() if kind in PARALLEL else 1
        return Step(name, kind, what, run, **(usual | rest))

    def _quant(self, calibration: Calibration, quant_type: str) -> PlannedQuant:
        imatrix = "" if calibration.kind == NONE else self._id("imatrix", calibration.id)
        step = self._id("quant", calibration.id, quant_type)
        return PlannedQuant(calibration, quant_type, imatrix, step)

    def _size(self, quant: PlannedQuant) -> int:
        return self.shared.sizes[self.model.label, quant.type]

    def _scoring_bytes(self, quants: Quants) -> int:
        logits = (1 + len(quants)) * logits_bytes(self.model, self.shared)
        return self.model.facts.size_bytes + sum(map(self._size, quants)) + logits

    def texts(self) -> Iterator[Step]:
        settings, options = self.recipe.calibration, TextOptions(seed=self.recipe.seed)
        for c in self.collected:
            own = dataclasses.replace(options, n_samples=settings.samples, sample=c.sample)
            step = self._text(c.id, self._words(c), c.text, settings.tokens, own)
            first = (self._id("corpus", f"{c.label}.1"),) if c.sample > 1 else ()
            yield dataclasses.replace(step, needs=first)
        for code in self.recipe.evaluation.texts:
            if code not in self.languages and "=" not in code:
                yield self._text(code, code, code, HELDOUT_TOKENS, options)

    def _text(self, name: str, words: str, text: str, n_tokens: int, options: TextOptions) -> Step:
        inputs = {"text": text, "n_tokens": n_tokens, "options": config.plain(options), **self.base}
        step, run = self._id("corpus", name), self._action(actions.corpus, text, n_tokens, options)
        return self._step(step, "corpus", f"text {words}", run, inputs=inputs, cost=TEXT_TOKENS)

    def _words(self, calibration: Calibration) -> str:
        n = self.recipe.calibration.samples
        return f"{calibration.label} {calibration.sample}/{n}" if n > 1 else calibration.label

    def imatrices(self) -> Iterator[Step]:
        cost = self.recipe.calibration.tokens
        memory = self.model.facts.size_bytes + 4 * 4 * 512 * self.model.facts.n_vocab
        for c in self.collected:
            step, text = self._id("imatrix", c.id), self._id("corpus", c.id)
            what, run = f"imatrix {self._words(c)}", self._action(actions.imatrix, c, text)
            rest = {"needs": (text,), "cost": cost, "memory_bytes": memory}
            yield self._step(step, "imatrix", what, run, **rest)
        for c in self.calibrations:
            if c.parts:
                parts = {part.id: self._id("imatrix", part.id) for part, _ in c.parts}
                inputs = {"by": c.by, "shares": {part.id: weight for part, weight in c.parts}}
                step, run = self._id("imatrix", c.id), self._action(actions.merged, c, parts)
                rest = {"inputs": inputs, "needs": tuple(parts.values())}
                yield self._step(step, "merge", f"imatrix {c.id}", run, **rest)

    def batch(self, quants: Quants, number: int, before: str) -> list[Step]:
        """Return the steps of quants that exist at the same time; the last may delete them."""
        suffix = (str(number),) if len(self.batches) > 1 else ()
        batch = [self._quantize(q, before) for q in quants]
        batch += self._items() if number == 1 else ()
        batch += [*self._scores(quants, suffix), *self._losses(quants)]
        for task in self.recipe.tasks:
            batch += [self.answers(task, q) for q in quants]
        if not self.shared.keeps_quants:
            step, run = self._id("tidy", str(number)), self._action(actions.cleanup, tuple(quants))
            rest = {"after": tuple(s.id for s in batch), "is_cleanup": True, "memory_bytes": 0}
            batch.append(self._step(step, "tidy", "removing quants", run, **rest))
        return batch

    def _quantize(self, quant: PlannedQuant, before: str) -> Step:
        # llama-quantize needs the largest matrix twice in float32
        largest = 2 * 4 * self.model.facts.n_vocab * self.model.facts.channels
        return self._step(
            quant.step,
            "quant",
            f"quantize {quant.calibration.id} {quant.type}",
            self._action(actions.quant, quant),
            inputs=self.base | {"type": quant.type},
            needs=(quant.imatrix_step,) if quant.imatrix_step else (),
            after=(before,) if before else (),
            is_target=self.shared.keeps_quants,
            cost=QUANT_TOKENS,
            memory_bytes=max(SMALL_BYTES, largest),
        )

    def _scores(self, quants: Quants, suffix: tuple[str, ...]) -> Iterator[Step]:
        evaluation = self.recipe.evaluation
        tokens = evaluation.documents * DOCUMENT_TOKENS or HELDOUT_ALL_TOKENS
        loaded = quants if self.base_logits == "live" else quants[:1]
        for entry in evaluation.texts:
            label, is_file, file = entry.partition("=")
            corpus = f"{label}.1" if label in self.languages else label
            step = "" if is_file else self._id("corpus", corpus)
            text = ScoredText(label, step, Path(file) if is_file else None)
            inputs = {**config.plain(evaluation), "texts": label, "teacher": self.base_logits}
            if text.path:
                inputs["file_sha256"] = sha256_file(text.path)
            yield self._step(
                self._id("score", label, *suffix),
                "score",
                " ".join(("score", label, *suffix)),
                self._action(actions.score, text, tuple(quants), self.base_logits),
                inputs=self.base | inputs,
                needs=(step,) if step else (),
                uses=tuple(q.step for q in quants),
                cost=tokens * (1 + len(quants)),
                memory_bytes=self._scoring_bytes(loaded),
            )

    def _losses(self, quants: Quants) -> Iterator[Step]:
        samples: dict[str, list[str]] = {}
        for c in self.collected:
            if c.kind == LANGUAGE:
                samples.setdefault(c.language, []).append(self._id("imatrix", c.id))
        uses = tuple(step for steps in samples.values() for step in steps)
        for quant in quants if samples else ():
            who = (quant.calibration.id, quant.type)
            step, what = self._id("loss", *who), f"predicted loss {' '.join(who)}"
            run = self._action(actions.predict_losses, quant, samples)
            rest = {"needs": (quant.step,), "uses": uses, "cost": LOSS_TOKENS}
            yield self._step(step, "loss", what, run, **rest)

    def _items(self) -> Iterator[Step]:
        for task, name in self.tasks.items():
            languages = tasks.languages_of(task, self.recipe)
            step, run = self._id("items", name), self._action(actions.items, task, languages)
            inputs = {"task": tasks.inputs(task, languages)}
            yield self._step(step, "items", f"items of {name}", run, inputs=inputs)

    def answers(self, task: Task, quant: PlannedQuant | None) -> Step:
        name, languages = self.tasks[task], tasks.languages_of(task, self.recipe)
        who, size = ["original"], self.model.facts.size_bytes
        if quant:
            who, size = [quant.calibration.id, quant.type], self._size(quant)
        return self._step(
            self._id("task", name, *who),
            "task",
            " ".join((name, *who)),
            self._action(actions.answers, task, languages, quant.step if quant else ""),
            inputs=self.base,
            needs=(self._id("items", name), *([quant.step] if quant else ())),
            cost=(task.limit or 1000) * len(languages) * ITEM_TOKENS,
            memory_bytes=size + logits_bytes(self.model, self.shared) + SMALL_BYTES,
        )
