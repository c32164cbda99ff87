"""What a study would do, cost and be able to detect; nothing is written but measured speeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.core.files import free_bytes
from imatrix_lab.core.progress import Progress, Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import NotBuilt
from imatrix_lab.corpus import documents
from imatrix_lab.errors import FetchFailed, ImatrixLabError, MissingTool
from imatrix_lab.imatrix import collect, collector, quant_error
from imatrix_lab.llamacpp import size_types
from imatrix_lab.llamacpp.toolchain import cores
from imatrix_lab.models import weights
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import allocate, score, tune
from imatrix_lab.quantize import error_sums, errors
from imatrix_lab.quantize.sensitivity import KINDS
from imatrix_lab.study import actions, graph, steps, validate
from imatrix_lab.study.cluster.split import SCORE, parts_of, split, waits_for
from imatrix_lab.study.context import Shared, prepare
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.kinds import kinds
from imatrix_lab.study.plan import benchmark, power, warnings
from imatrix_lab.study.plan.benchmark import Benchmark, Speed
from imatrix_lab.study.recipe import PLAIN, Recipe
from imatrix_lab.types import CorpusFacts, Model

DOCUMENTS, DOCUMENT_TOKENS = 40, 350
"""Held out of a text that is not built yet: as of those written for this project."""
TOKEN_BYTES, FILE_BYTES, ANSWER_BYTES = 24, 8192, 4
"""On disk: a scored token, the rest of a file of records, a token of a prompt or answer."""
MIXED = "Q4_K_M"
"""The type whose speed stands for that of files whose types are not known yet."""
ASSUMED_S = {"corpus": 60.0, "merge": 2.0, "items": 30.0, "tidy": 0.0, "page": 1.0}
"""Steps that no short run can measure: fetching and cleaning, mostly."""


@dataclass(frozen=True)
class PlannedStep:
    """One step, done if cached; its seconds are from the speed `stands_on` (empty: assumed).

    `waits_for` are the steps that come before it.
    """

    id: str
    kind: str
    what: str
    is_done: bool
    seconds: float
    disk_bytes: int
    memory_bytes: int
    stands_on: str
    waits_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A study before it is run; without rows if llama.cpp or the model is missing.

    `seconds` is of all that is to do, one step after another with all cores: steps side by side
    share the cores and take hardly less. The disk's bytes are those that the study takes at most
    and afterwards; `memory_bytes` is the largest step's.
    """

    name: str
    rows: tuple[PlannedStep, ...]
    rates: Mapping[str, Speed]
    seconds: float
    disk_peak_bytes: int
    disk_final_bytes: int
    disk_free_bytes: int
    memory_bytes: int
    memory_limit_bytes: int
    effects: tuple[power.Effect, ...]
    warnings: tuple[str, ...]


def plan(recipe: Recipe, folder: Folder, session: Session, n_machines: int = 1) -> Plan:
    """Return what a study would do, with the parts that steps have on several machines."""
    validate.check(recipe)
    try:
        shared = prepare(recipe, folder, session.read_only())
    except (NotBuilt, FetchFailed, MissingTool) as error:
        sizes = [_assumed(text.partition("=")[0], recipe) for text in recipe.evaluation.texts]
        effects = tuple(power.Planned(recipe, sizes).effects())
        problems = (warnings.of_absence(error, recipe), *_recipe_warnings(recipe, effects))
        free = free_bytes(folder.path)
        return Plan(recipe.name, (), {}, 0.0, 0, 0, free, 0, 0, effects, problems)
    return _Planner(shared, session.progress, n_machines).plan()


def _recipe_warnings(recipe: Recipe, effects: Sequence[power.Effect]) -> tuple[str, ...]:
    return (*warnings.of_tasks(recipe), *warnings.of_samples(recipe), *warnings.of_effects(effects))


def _assumed(label: str, recipe: Recipe) -> power.TextSize:
    n = min(recipe.evaluation.documents or DOCUMENTS, DOCUMENTS)
    each = min(recipe.evaluation.document_tokens or DOCUMENT_TOKENS, DOCUMENT_TOKENS)
    return power.TextSize(label, (each,) * n, is_known=False)


class _Planner:
    def __init__(self, shared: Shared, progress: Progress, n_machines: int):
        self.shared, records = shared, shared.folder.records()
        self.steps = split(steps.steps(shared), records, n_machines)
        self.by_id = {step.id: step for step in self.steps}
        finished = graph.finished(self.steps, records)
        self.todo = {step.id for step in graph.to_run(self.steps, finished)}
        self.corpora = {s.id: self._corpus(s) for s in self.steps if s.kind == "corpus"}
        self.sizes = {s.id: self._size(s) for s in self.steps if s.kind == SCORE}
        self.columns = {}
        for m in shared.models:
            self.columns[m.label] = sum(p.info.shape[0] for p in quant_error.tensors(m).values())
        self.kinds = {kind.label: kind for kind in kinds(shared.recipe)}
        self.benchmark = Benchmark(shared, progress)
        self.speeds: dict[str, Speed] = {}

    def plan(self) -> Plan:
        shared, recipe = self.shared, self.shared.recipe
        rows = tuple(self._row(step) for step in self.steps)
        final, peak = _disk(rows, shared.keeps_quants)
        memory, memory_limit = max(row.memory_bytes for row in rows), shared.memory_bytes()
        free, effects = free_bytes(shared.folder.path), tuple(self._effects())
        return Plan(
            name=recipe.name,
            rows=rows,
            rates=self.speeds,
            seconds=sum(row.seconds for row in rows if not row.is_done),
            disk_peak_bytes=peak,
            disk_final_bytes=final,
            disk_free_bytes=free,
            memory_bytes=memory,
            memory_limit_bytes=memory_limit,
            effects=effects,
            warnings=(
                *(f"{missing.step}: {missing.why}" for missing in shared.missing),
                *warnings.of_corpora(self.corpora, self.by_id),
                *warnings.of_types(shared),
                *_recipe_warnings(recipe, effects),
                *warnings.of_speeds(self.speeds),
                *warnings.of_space(peak, free, memory, memory_limit),
            ),
        )

    def _model(self, step: graph.Step) -> Model:
        return next(m for m in self.shared.models if step.id.startswith(f"{m.label}."))

    def _corpus(self, step: graph.Step) -> CorpusFacts | None:
        """Return a text if it is built: the steps' store is read-only."""
        try:
            return actions.corpus_in(step.run(graph.Turn(cores(), Silent(), {})))
        except (NotBuilt, ImatrixLabError):
            return None

    def _size(self, step: graph.Step) -> power.TextSize:
        recipe, label = self.shared.recipe, str(step.inputs["texts"])
        files = dict(t.split("=", 1) for t in recipe.evaluation.texts if "=" in t)
        if label in files:
            texts = score.documents_in(Path(files[label]), label)
        elif corpus := self.corpora[step.needs[0]]:
            texts = documents.read(corpus.heldout)
        else:
            return _assumed(label, recipe)
        with Vocabulary(self.shared.tools, self._model(step).path) as vocabulary:
            scored = texts[: recipe.evaluation.documents or None]
            counts = [vocabulary.count(document.text) for document in scored]
        most = recipe.evaluation.document_tokens or max(counts)
        tokens = tuple(min(n, most) for n in counts)
        return power.TextSize(label, tokens, is_known=True)

    def _has_imatrix(self, step: graph.Step) -> bool:
        shared, corpus, model = self.shared, self.corpora[step.needs[0]], self._model(step)
        if corpus is None:
            return False
        options = tune.imatrix_options(shared.request(model), model, corpus)
        inputs = collect.inputs(model, corpus, options, shared.tools)
        return shared.store.find("imatrix", inputs) is not None

    def _row(self, step: graph.Step) -> PlannedStep:
        is_done = step.id not in self.todo or bool(self.corpora.get(step.id))
        is_done = is_done or (step.kind == "imatrix" and self._has_imatrix(step))
        seconds, stands_on = (0.0, "") if is_done else self._seconds(step)
        disk, memory = self._disk_bytes(step), step.memory_bytes
        return PlannedStep(
            step.id, step.kind, step.what, is_done, seconds, disk, memory, stands_on,
            waits_for(step),
        )  # fmt: skip

    def _seconds(self, step: graph.Step) -> tuple[float, str]:
        """Return what a step takes, and the name of the speed that this is from."""
        if step.kind in ASSUMED_S:
            return ASSUMED_S[step.kind], ""
        model = self._model(step)
        n_weights = model.facts.n_parameters
        if step.kind == "quant":
            kind = self.kinds[str(step.inputs["type"])]
            base = base_type(kind.type)
            seconds, name = self._seconds_for(n_weights, "quantize", base)
            more = [part for part in kind.quantizer.split("+") if part != PLAIN]
            for part in filter(benchmark.QUANTIZERS.__contains__, more):
                seconds += self._seconds_for(n_weights, part, base)[0]
            return seconds, name if set(more) <= set(benchmark.QUANTIZERS) else ""
        if step.kind == "loss":
            return self._seconds_for(n_weights, "loss", base_type(self.shared.recipe.types[0]))
        if step.kind == "errors":
            return self._seconds_for(self._n_sampled(model), "quantize", MIXED)
        if step.kind == "sensitivity":  # weights are quantized by each kind of type
            n_kinds = len(KINDS)
            share = (not parts_of(step)) / step.inputs.get("part", (0, 1))[1]
            seconds = self._seconds_for(share * n_kinds * n_weights, "quantize", "Q3_K_S")[0]
            read_s, name = self._seconds_for(step.cost, "score", model)
            return seconds + read_s, name
        units = step.cost
        if step.kind == SCORE:  # through all the models
            units = sum(self.sizes[step.id].tokens) * (1 + len(step.uses))
            units *= not parts_of(step)
        return self._seconds_for(units, "imatrix" if step.kind == "imatrix" else "score", model)

    def _seconds_for(self, units: float, what: str, of: Model | str) -> tuple[float, str]:
        """Return the seconds that some tokens or weights take, and the name of their speed."""
        name = "predicted loss" if what == "loss" else ""
        name = name or f"{what} {of if isinstance(of, str) else of.label}"
        speed = self.speeds[name] = self.benchmark.speed(what, of)
        return units / speed.per_second, name

    def _n_sampled(self, model: Model) -> int:
        """Return how many weights are quantized to know the errors of all types."""
        n_types, sampled = len(allocate.types_of(self.shared.request(model))), 0
        for name, (_, info) in quant_error.tensors(model).items():
            n_rows = error_sums.TOKEN_ROWS if name in (*errors.EMBEDDINGS, errors.HEAD) else 0
            sampled += min(n_rows or error_sums.ROWS, weights.n_rows(info)) * info.shape[0]
        return n_types * sampled

    def _disk_bytes(self, step: graph.Step) -> int:
        label = self._model(step).label
        if step.kind == "quant":
            return self.shared.sizes[label, str(step.inputs["type"])]
        if step.kind == "sensitivity":  # while it is measured
            return 4 * steps.PROBE_TOKENS * self._model(step).facts.n_vocab
        if step.part_of:
            return 0  # what it makes is that step's
        if step.kind == SCORE:
            tokens = sum(self.sizes[step.id].tokens)
            return len(step.uses) * (FILE_BYTES + TOKEN_BYTES * tokens)
        if step.kind in ("task", "votes"):
            return int(step.cost) * ANSWER_BYTES
        imatrix = 4 * (2 + collector.BLOCK) if self.shared.needs_moments else 4
        n_types = len(allocate.types_of(self.shared.request(self._model(step))))
        column_bytes = {"imatrix": imatrix, "merge": imatrix, "loss": 16, "errors": 4 * n_types}
        return column_bytes.get(step.kind, 0) * self.columns[label]  # texts are small

    def _effects(self) -> Iterator[power.Effect]:
        shared = self.shared
        for model in shared.models:
            own = [s for step, s in self.sizes.items() if self._model(self.by_id[step]) is model]
            sizes = list({size.label: size for size in own}.values())
            yield from power.Planned(shared.recipe, sizes, model, shared.store).effects()


def base_type(quant_type: str) -> str:
    """Return the type of llama-quantize that takes as long as a type of a recipe."""
    if size_types.is_size(quant_type) or not quant_type:
        return size_types.standard(quant_type) or MIXED
    return quant_type


def _disk(rows: Sequence[PlannedStep], keeps_quants: bool) -> tuple[int, int]:
    """Return the bytes that a study has at the end, and at most."""
    kept = peak = waiting = 0
    for row in rows:
        if row.kind == "quant" and not keeps_quants:
            waiting += 0 if row.is_done else row.disk_bytes
        elif row.kind == "sensitivity":
            peak = max(peak, kept + waiting + (0 if row.is_done else row.disk_bytes))
        elif row.kind == "tidy":
            waiting = 0
        else:
            kept += row.disk_bytes
        peak = max(peak, kept + waiting)
    return kept, peak
