"""What a study would do, take, and be able to find: `study run --dry-run`.

Nothing is written but the rates of this machine.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.core.files import free_bytes
from imatrix_lab.core.progress import Progress, Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import NotBuilt
from imatrix_lab.corpus import documents as docs
from imatrix_lab.errors import FetchFailed, ImatrixLabError, MissingTool
from imatrix_lab.imatrix import collect, quant_error
from imatrix_lab.llamacpp.toolchain import cores
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import score, tune
from imatrix_lab.study import actions, graph, steps, validate
from imatrix_lab.study.context import Shared, prepare
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.graph import Step, Turn
from imatrix_lab.study.plan import power
from imatrix_lab.study.plan import warnings as doubts
from imatrix_lab.study.plan.benchmark import Rate, Rates
from imatrix_lab.study.plan.power import Effect, TextSize
from imatrix_lab.study.recipe import Recipe
from imatrix_lab.types import CorpusFacts, Model, Request

DOCUMENTS, DOCUMENT_TOKENS = 40, 350
"""Held out of a text that is not there yet: as of those written for this project."""
TOKEN_BYTES, FILE_BYTES, ANSWER_BYTES = 24, 8192, 4
"""On disk: of a scored token, of a file of records beside them, of a token asked and answered."""
ASSUMED_S = {"corpus": 60.0, "merge": 2.0, "items": 30.0, "tidy": 0.0}
"""Steps that no short run can tell: fetching and cleaning, mostly."""


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes
    ----------
    is_done : it, or what it makes, is there.
    seconds, disk_bytes : that it takes and writes.
    stands_on : the rate that its seconds are from; empty where they are assumed.
    """

    id: str
    kind: str
    what: str
    is_done: bool
    seconds: float
    disk_bytes: int
    memory_bytes: int
    stands_on: str


@dataclass(frozen=True)
class Plan:
    """A study before it is run; without rows where llama.cpp or the model is not there yet.

    Attributes
    ----------
    rates : what was measured of this machine, by name.
    seconds : of all that is to do, one step after another with all cores. Side by side steps
        share the cores and take hardly less.
    disk_peak_bytes, disk_final_bytes : that the study takes while it runs, and afterwards.
    memory_bytes : of the largest step.
    effects : what the planned comparisons can find.
    warnings : where the study cannot answer its question, and what would.
    """

    name: str
    rows: tuple[Row, ...]
    rates: Mapping[str, Rate]
    seconds: float
    disk_peak_bytes: int
    disk_final_bytes: int
    disk_free_bytes: int
    memory_bytes: int
    memory_limit_bytes: int
    effects: tuple[Effect, ...]
    warnings: tuple[str, ...]


def plan(recipe: Recipe, folder: Folder, session: Session) -> Plan:
    """Return what a study would do.

    Raises
    ------
    UsageError : see `check.check`.
    """
    validate.check(recipe)
    try:
        shared = prepare(recipe, folder, session.read_only())
    except (NotBuilt, FetchFailed, MissingTool) as lacking:
        return _without_model(recipe, folder, lacking)
    return _Planner(shared, session.progress).plan()


def _without_model(recipe: Recipe, folder: Folder, lacking: Exception) -> Plan:
    """Return what can be said where llama.cpp or the model is not there yet."""
    sizes = [_assumed(text.partition("=")[0], recipe) for text in recipe.evaluation.texts]
    found = tuple(power.Planned(recipe, sizes).effects())
    warnings = (
        doubts.of_absence(lacking, recipe), *doubts.of_tasks(recipe),
        *doubts.of_samples(recipe), *doubts.of_effects(found, recipe),
    )  # fmt: skip
    return Plan(
        recipe.name, (), {}, 0.0, 0, 0, free_bytes(folder.path), 0, 0, found, warnings
    )  # fmt: skip


def _assumed(label: str, recipe: Recipe) -> TextSize:
    n = min(recipe.evaluation.documents or DOCUMENTS, DOCUMENTS)
    return TextSize(label, (DOCUMENT_TOKENS,) * n, is_known=False)


class _Planner:
    """The steps of a study, what is there of them, and how fast the machine is."""

    def __init__(self, shared: Shared, progress: Progress):
        self.shared = shared
        self.steps = steps.steps(shared)
        self.by_id = {step.id: step for step in self.steps}
        there = graph.finished(self.steps, shared.folder.records())
        self.todo = {step.id for step in graph.to_run(self.steps, there)}
        self.corpora = {s.id: self._corpus(s) for s in self.steps if s.kind == "corpus"}
        self.sizes = {s.id: self._size(s) for s in self.steps if s.kind == "score"}
        self.columns = {
            m.label: sum(p.info.shape[0] for p in quant_error.parts(m).values())
            for m in shared.models
        }
        self.rates = Rates(shared, progress)
        self.measured: dict[str, Rate] = {}

    def plan(self) -> Plan:
        """Return the plan."""
        shared, recipe = self.shared, self.shared.recipe
        rows = tuple(self._row(step) for step in self.steps)
        final, peak = _disk(rows, shared.keeps_quants)
        memory = max(row.memory_bytes for row in rows)
        room = doubts.Room(peak, free_bytes(shared.folder.path), memory, shared.memory_bytes())
        found = tuple(self._effects())
        warnings = (
            *(f"{lost.step}: {lost.why}" for lost in shared.missing),
            *doubts.of_corpora(self.corpora, self.by_id, recipe),
            *doubts.of_types(shared),
            *doubts.of_tasks(recipe),
            *doubts.of_samples(recipe),
            *doubts.of_effects(found, recipe),
            *doubts.of_rates(self.measured),
            *doubts.of_room(room),
        )
        return Plan(
            recipe.name, rows, self.measured, sum(r.seconds for r in rows if not r.is_done), peak,
            final, room.disk_free_bytes, memory, room.memory_limit_bytes, found, warnings,
        )  # fmt: skip

    def _model(self, step: Step) -> Model:
        return next(m for m in self.shared.models if step.id.startswith(f"{m.label}."))

    # -- what is there

    def _corpus(self, step: Step) -> CorpusFacts | None:
        """Return a text, if it is there: the steps' store is for reading only."""
        try:
            turn = Turn(cores(), Silent(), {})
            return actions.corpus_in(step.run(turn))
        except (NotBuilt, ImatrixLabError):
            return None

    def _size(self, step: Step) -> TextSize:
        """Return how long the documents are that a step scores on."""
        recipe, label = self.shared.recipe, str(step.inputs["texts"])
        files = dict(t.split("=", 1) for t in recipe.evaluation.texts if "=" in t)
        if label in files:
            found = score.documents_in(Path(files[label]), label)
        elif corpus := self.corpora[step.needs[0]]:
            found = docs.read(corpus.heldout)
        else:
            return _assumed(label, recipe)
        with Vocabulary(self.shared.tools, self._model(step).path) as vocabulary:
            kept = found[: recipe.evaluation.documents or None]
            return TextSize(label, tuple(vocabulary.count(d.text) for d in kept), is_known=True)

    def _has_imatrix(self, step: Step) -> bool:
        """Return whether the store has an imatrix of a text that is there."""
        shared, corpus, model = self.shared, self.corpora[step.needs[0]], self._model(step)
        if corpus is None:
            return False
        request = Request(
            "", (), model.origin, corpus.n_tokens, shared.folder.path,
            shared.compute(),
        )  # fmt: skip
        options = tune.imatrix_options(request, model, corpus)
        inputs = collect.inputs(model, corpus, options, shared.tools)
        return shared.store.find("imatrix", inputs) is not None

    def _is_done(self, step: Step) -> bool:
        if step.id not in self.todo:
            return True
        if step.kind == "corpus":
            return self.corpora[step.id] is not None
        return step.kind == "imatrix" and self._has_imatrix(step)

    # -- what it takes

    def _row(self, step: Step) -> Row:
        is_done = self._is_done(step)
        seconds, stands_on = (0.0, "") if is_done else self._seconds(step)
        return Row(
            step.id, step.kind, step.what, is_done, seconds, self._disk_bytes(step),
            step.memory_bytes, stands_on,
        )  # fmt: skip

    def _seconds(self, step: Step) -> tuple[float, str]:
        """Return what a step takes, and the name of the rate that says so."""
        model, weights = self._model(step), self._model(step).facts.n_parameters
        if step.kind in ASSUMED_S:
            return ASSUMED_S[step.kind], ""
        if step.kind == "imatrix":
            name, rate, units = f"imatrix {model.label}", self.rates.imatrix(model), step.cost
        elif step.kind == "quant":
            kind = str(step.inputs["type"])
            name, rate, units = f"quantize {kind}", self.rates.quantizing(kind), weights
        elif step.kind == "loss":
            name, rate, units = "predicted loss", self.rates.summing(), weights
        else:
            name, rate, units = (
                f"score {model.label}",
                self.rates.scoring(model),
                self._tokens(step),
            )
        self.measured[name] = rate
        return units / rate.per_second, name

    def _tokens(self, step: Step) -> float:
        """Return tokens through all the models that a step runs."""
        if step.kind != "score":
            return step.cost
        return sum(self.sizes[step.id].tokens) * (1 + len(step.uses))

    def _disk_bytes(self, step: Step) -> int:
        label, found = self._model(step).label, 0  # texts are small
        if step.kind in ("imatrix", "merge"):
            found = 4 * self.columns[label]
        elif step.kind == "quant":
            found = self.shared.sizes[label, str(step.inputs["type"])]
        elif step.kind == "score":
            tokens = sum(self.sizes[step.id].tokens)
            found = len(step.uses) * (FILE_BYTES + TOKEN_BYTES * tokens)
        elif step.kind == "loss":
            found = 16 * self.columns[label]
        elif step.kind == "task":
            found = int(step.cost) * ANSWER_BYTES
        return found

    # -- what it can find

    def _effects(self) -> Iterator[Effect]:
        for model in self.shared.models:
            first = {
                size.label: size
                for step, size in self.sizes.items()
                if self._model(self.by_id[step]) is model
            }
            store = self.shared.store
            yield from power.Planned(
                self.shared.recipe, list(first.values()), model, store
            ).effects()


def _disk(rows: Sequence[Row], keeps_quants: bool) -> tuple[int, int]:
    """Return the bytes that a study has at the end, and at most."""
    kept = peak = waiting = 0
    for row in rows:
        if row.kind == "quant" and not keeps_quants:
            waiting += 0 if row.is_done else row.disk_bytes
        elif row.kind == "tidy":
            waiting = 0
        else:
            kept += row.disk_bytes
        peak = max(peak, kept + waiting)
    return kept, peak
