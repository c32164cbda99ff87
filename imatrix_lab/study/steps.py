"""A recipe as steps: texts, imatrices, merges, errors, quants, scores, losses, tasks, cleanup.

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
from imatrix_lab.quantize import probes
from imatrix_lab.score.run import QUANTS_MAX
from imatrix_lab.study import actions, tasks, votes
from imatrix_lab.study.actions import PlannedQuant, Quants, ScoredText
from imatrix_lab.study.calibrations import LANGUAGE, Calibration, calibrations, collected
from imatrix_lab.study.context import Shared, logits_bytes
from imatrix_lab.study.graph import Step
from imatrix_lab.study.kinds import Kind, kinds
from imatrix_lab.study.recipe import NONE, PLAIN, Task
from imatrix_lab.types import Model, TextOptions

HELDOUT_TOKENS = 1024
"""Of the text of a language that is only scored on: what is held out does not depend on it."""
SMALL_BYTES = 1 << 29
DOCUMENT_TOKENS, HELDOUT_ALL_TOKENS, ITEM_TOKENS = 300, 15_000, 200  # for the time left
QUANT_TOKENS, LOSS_TOKENS, TEXT_TOKENS = 2_000, 300, 500  # taking as long, roughly
PROBE_TOKENS = probes.PIECES_MIN * probes.PIECE_TOKENS
PARALLEL = ("imatrix", "errors", "sensitivity", "quant", "score", "loss", "task", "votes")
TARGETS = ("imatrix", "merge", "score", "loss", "task", "page")  # kinds that are run for themselves


def steps(shared: Shared) -> tuple[Step, ...]:
    """Return the steps of a study, each after those it depends on."""
    every: list[Step] = []
    before = ""
    for model in shared.models:
        own = _ModelSteps(shared, model)
        every += [*own.texts(), *own.imatrices(), *own.sensitivities()]
        for number, batch in enumerate(own.batches, 1):
            every += own.batch(batch, number, before)
            before = every[-1].id if shared.recipe.limits.disk_gib else ""
        every += [own.answers(task, None) for task in shared.recipe.tasks]
        every += own.page()
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
        size = shared.sizes[model.label, quant.kind.label]
        if size > limit:
            limits = f"more than the {format.size(limit)} of limits.disk_gib"
            problem = f"{quant.kind.label} of {model.label} takes {format.size(size)}, {limits}"
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
        self.has_sizes = any(kind.is_size for kind in kinds(self.recipe))
        quants = [
            self._quant(c, kind)
            for kind in kinds(self.recipe)
            for c in self.calibrations
            if kind.is_made(c)
        ]
        self.batches = batches(shared, model, quants)
        # decided once, so that numbers compare: are models in memory together? A GPU's memory is
        # not known unless the recipe gives it; then one model is loaded at a time
        fits = max(map(self._scoring_bytes, self.batches)) <= shared.memory_bytes()
        is_known = shared.tools.backend in IN_MEMORY or self.recipe.limits.memory_gib > 0
        self.base_logits = "live" if fits and is_known else "cached"

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

    def _quant(self, calibration: Calibration, kind: Kind) -> PlannedQuant:
        imatrix = "" if calibration.kind == NONE else self._id("imatrix", calibration.id)
        step = self._id("quant", calibration.id, kind.id)
        texts = {
            label: (self._id("imatrix", part.id), weight)
            for label, (part, weight) in calibration.texts().items()
        }
        return PlannedQuant(calibration, kind, imatrix, step, texts if kind.is_size else {})

    def _size(self, quant: PlannedQuant) -> int:
        return self.shared.sizes[self.model.label, quant.kind.label]

    def _scoring_bytes(self, quants: Quants) -> int:
        """Return what the original takes, and as many quants as are in memory with it."""
        largest = sorted(map(self._size, quants))[-QUANTS_MAX:]
        logits = (1 + len(largest)) * logits_bytes(self.model, self.shared)
        return self.model.facts.size_bytes + sum(largest) + logits

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

    def sensitivities(self) -> Iterator[Step]:
        """Yield what types are chosen by, if they are: measured once for each calibration."""
        for c in self.calibrations if self.has_sizes else ():
            if c.kind != NONE:
                yield self._errors(c)
        for c in self.collected if self.has_sizes else ():
            step, imatrix = self._id("sensitivity", c.id), self._id("imatrix", c.id)
            what, run = f"sensitivity {self._words(c)}", self._action(actions.measure, c, imatrix)
            after = (self._id("errors", c.id),) if c in self.calibrations else ()
            n_probes = probes.n_probes(self.model)
            yield self._step(
                step,
                "sensitivity",
                what,
                run,
                needs=(imatrix,),
                after=after,
                cost=(1 + n_probes) * PROBE_TOKENS,
                memory_bytes=self.model.facts.size_bytes + logits_bytes(self.model, self.shared),
            )

    def _errors(self, calibration: Calibration) -> Step:
        size = next(kind for kind in kinds(self.recipe) if kind.is_size)
        quant = self._quant(calibration, size)
        needs = dict.fromkeys((quant.imatrix_step, *(step for step, _ in quant.texts.values())))
        return self._step(
            self._id("errors", calibration.id),
            "errors",
            f"errors of types, {self._words(calibration)}",
            self._action(actions.errors, quant),
            inputs={"types": self.recipe.types},
            needs=tuple(needs),
            cost=QUANT_TOKENS,
        )

    def batch(self, quants: Quants, number: int, before: str) -> list[Step]:
        """Return the steps of quants that exist at the same time; the last may delete them."""
        suffix = (str(number),) if len(self.batches) > 1 else ()
        batch = [*self._items()] if number == 1 else []  # first: quants may be for them alone
        batch += [self._quantize(q, before) for q in quants]
        batch += [*self._scores(quants, suffix), *self._losses(quants)]
        for task in self.recipe.tasks:
            batch += [self.answers(task, q) for q in quants]
        batch += [self._answers_for_votes(q.step) for q in quants if q.step in self._voted()]
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
            f"quantize {quant.calibration.id} {quant.kind.label}",
            self._action(actions.quant, quant),
            inputs=self.base | {"type": quant.kind.label},
            needs=self._needs(quant),
            after=(before,) if before else (),
            is_target=self.shared.keeps_quants,
            cost=QUANT_TOKENS,
            memory_bytes=max(SMALL_BYTES, largest),
        )

    def _needs(self, quant: PlannedQuant) -> tuple[str, ...]:
        """Return the steps that a quant is made of: its imatrix, and what its types stand on."""
        needs = [quant.imatrix_step] if quant.imatrix_step else []
        if quant.kind.is_size:
            needs.append(self._id("errors", quant.calibration.id))
            for part, _ in quant.calibration.texts().values():
                needs += [self._id(kind, part.id) for kind in ("imatrix", "sensitivity")]
        return tuple(dict.fromkeys(needs))

    def _scores(self, quants: Quants, suffix: tuple[str, ...]) -> Iterator[Step]:
        evaluation = self.recipe.evaluation
        each = min(evaluation.document_tokens or DOCUMENT_TOKENS, DOCUMENT_TOKENS)
        tokens = evaluation.documents * each or HELDOUT_ALL_TOKENS
        is_live = self.base_logits == "live"
        loaded, passes = (quants, -(-len(quants) // QUANTS_MAX)) if is_live else (quants[:1], 1)
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
                cost=tokens * (passes + len(quants)),
                memory_bytes=self._scoring_bytes(loaded),
            )

    def _losses(self, quants: Quants) -> Iterator[Step]:
        samples: dict[str, list[str]] = {}
        sensitivities: dict[str, str] = {}
        for c in self.collected:
            if c.kind == LANGUAGE:
                samples.setdefault(c.language, []).append(self._id("imatrix", c.id))
                if self.has_sizes:
                    sensitivities.setdefault(c.language, self._id("sensitivity", c.id))
        uses = tuple(step for steps in samples.values() for step in steps)
        uses += tuple(sensitivities.values())
        predictable = [q for q in quants if q.kind.quantizer == PLAIN]
        for quant in predictable if samples else ():
            who = (quant.calibration.id, quant.kind.label)
            step, what = self._id("loss", who[0], quant.kind.id), f"predicted loss {' '.join(who)}"
            run = self._action(actions.predict_losses, quant, samples, sensitivities)
            needs = (quant.step, *([quant.imatrix_step] if quant.imatrix_step else []))
            rest = {"needs": needs, "uses": uses, "cost": LOSS_TOKENS}
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
            who, size = [quant.calibration.id, quant.kind.label], self._size(quant)
        return self._step(
            self._id("task", name, *who[:1], *([quant.kind.id] if quant else ())),
            "task",
            " ".join((name, *who)),
            self._action(actions.answers, task, languages, quant.step if quant else ""),
            inputs=self.base,
            needs=(self._id("items", name), *([quant.step] if quant else ())),
            cost=(task.limit or 1000) * len(languages) * ITEM_TOKENS,
            memory_bytes=size + logits_bytes(self.model, self.shared) + SMALL_BYTES,
        )

    def _voted(self) -> dict[str, str]:
        """Return the steps of answers for votes, by that of the quant; "" is the original."""
        chosen, kind = votes.chosen(self.recipe, self.calibrations)
        voted = {}
        for c in chosen:
            who = (c.id, kind.id) if c else (votes.ORIGINAL,)
            voted[self._id("quant", *who) if c else ""] = self._id("votes", *who)
        return voted

    def _answers_for_votes(self, quant: str) -> Step:
        step = self._voted()[quant]
        return self._step(
            step,
            "votes",
            f"answers of {step.partition('.votes.')[2].replace('.', ' ')}",
            self._action(votes.answers, quant),
            inputs=self.base | votes.inputs(self.recipe),
            needs=(quant,) if quant else (),
            cost=votes.n_prompts(self.recipe) * self.recipe.preference.max_tokens,
            memory_bytes=2 * self.model.facts.size_bytes + SMALL_BYTES,
        )

    def page(self) -> Iterator[Step]:
        """Yield the steps of the page for votes, but for the answers of quants."""
        voted = self._voted()
        if "" in voted:
            yield self._answers_for_votes("")
        if voted:
            run, needs = self._action(votes.page, tuple(voted.values())), tuple(voted.values())
            yield self._step(self._id("page"), "page", "page for votes", run, needs=needs)
