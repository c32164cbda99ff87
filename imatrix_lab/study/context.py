"""What the steps of a study share: recipe, models, llama.cpp, limits of the machine."""

import dataclasses
from dataclasses import dataclass

from imatrix_lab.core.progress import Progress
from imatrix_lab.core.remote_store import RemoteStore
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import ImatrixLabError, UsageError
from imatrix_lab.llamacpp import compute, size_types, toolchain
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.models import resolve
from imatrix_lab.models.tokenizer import silence
from imatrix_lab.pipeline import allocate
from imatrix_lab.quantize import run
from imatrix_lab.report.results import Missing
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.kinds import QUANTIZERS, Kind, kinds
from imatrix_lab.study.recipe import Recipe, without_folders
from imatrix_lab.study.scheduler import Capacity
from imatrix_lab.types import ComputeOptions, Model, Request


@dataclass(frozen=True)
class Shared:
    """What every step may look at.

    Each model has a label of its own; `sizes` are bytes of a quant, by that label and its kind's;
    `missing` are models that could not be fetched or read; `part` is that of the remote store by
    which files go from machine to machine, empty where all see the folder.
    """

    recipe: Recipe
    folder: Folder
    store: Store
    tools: toolchain.Toolchain
    models: tuple[Model, ...]
    sizes: dict[tuple[str, str], int]
    missing: tuple[Missing, ...] = ()
    part: str = ""

    @property
    def work(self) -> Store:
        """A store of the study's own, for quants that are deleted after scoring."""
        remote = RemoteStore(self.part) if self.part else None
        return Store(self.folder.of("work"), remote=remote)

    def session(self, progress: Progress) -> Session:
        """Return the store with where a step reports."""
        return Session(self.store, progress)

    @property
    def keeps_quants(self) -> bool:
        """Whether quants are kept."""
        return self.recipe.keep == "all"

    @property
    def needs_moments(self) -> bool:
        """Whether a quantizer takes second moments: every imatrix is collected with them then."""
        return any(QUANTIZERS[name].needs_moments for name in self.recipe.quantizers)

    def compute(self, threads: int | None = None, n_ctx: int | None = None) -> ComputeOptions:
        """Return how to run a program."""
        layers = self.recipe.limits.gpu_layers
        gpu_layers = None if layers < 0 else layers
        return ComputeOptions(self.tools.backend, threads, n_ctx, gpu_layers=gpu_layers)

    def request(self, model: Model, threads: int | None = None) -> Request:
        """Return what texts, imatrices and choices of types are made by."""
        recipe, out, options = self.recipe, self.folder.path, self.compute(threads)
        rest = (recipe.types, model.origin, recipe.calibration.tokens, out, options)
        return Request("", *rest, moments=self.needs_moments)

    def memory_bytes(self) -> int:
        """Return the memory that the study may use at a time."""
        limit = int(self.recipe.limits.memory_gib * 2**30)
        return limit or int(compute.MEMORY_SHARE * compute.memory_bytes())

    def capacity(self, jobs: int | None) -> Capacity:
        """Return what may run at a time; a GPU runs one step."""
        limits = self.recipe.limits
        most = toolchain.cores() if self.tools.backend in toolchain.IN_MEMORY else 1
        jobs = min(jobs or limits.jobs or most, most)
        return Capacity(jobs, toolchain.cores(), self.memory_bytes(), limits.threads)


def prepare(recipe: Recipe, folder: Folder, session: Session) -> Shared:
    """Return what the steps share; llama.cpp is built and models are fetched if necessary."""
    if len(recipe.models) == 1:  # of several, the others go on
        resolve.check_spec(recipe.models[0], session.store)
    tools = get_toolchain(recipe.backend, session)
    silence(tools.bindings())  # once, before there are threads
    models: list[Model] = []
    missing = []
    for spec, name in zip(recipe.models, without_folders(recipe).models, strict=True):
        try:
            model = resolve.resolve_to_run(spec, session, tools)
            run.check_layers(model.facts, model.path, recipe.types)
            for quantizer in recipe.quantizers:
                QUANTIZERS[quantizer].check_model(model)
        except ImatrixLabError as error:
            if len(recipe.models) == 1:
                raise
            missing.append(Missing(f"model {name}", error.what, error.fix or "", ("all of it",)))
            continue
        if any(other.label == model.label for other in models):
            model = dataclasses.replace(model, label=f"{model.label}-{model.sha256[:8]}")
        models.append(model)
    if not models:
        raise UsageError("none of the models is available", fix=missing[0].fix)
    sizes = dict[tuple[str, str], int]()
    shared = Shared(recipe, folder, session.store, tools, tuple(models), sizes, tuple(missing))
    for model in models:
        allocate.check(dataclasses.replace(shared.request(model), model=str(model.path)))
        for kind in kinds(recipe):
            sizes[model.label, kind.label] = _size_bytes(tools, model, kind)
    return shared


def _size_bytes(tools: toolchain.Toolchain, model: Model, kind: Kind) -> int:
    """Return the bytes of a quant; of one on a quantizer's own grid, those of the original."""
    base = size_types.standard(kind.type) if kind.is_size else kind.type
    if base:
        settings = compute.compute_for(model.facts, ComputeOptions(tools.backend, threads=1))
        return run.dry_run(tools, model, base, run.Options(settings))[0]
    facts = model.facts
    return size_types.n_bytes(kind.type, facts.n_parameters, 0) if kind.type else facts.size_bytes


def logits_bytes(model: Model, shared: Shared) -> int:
    """Return what a model that is scored needs besides its weights: logits, twice."""
    rows = compute.logit_rows(model.facts.n_vocab, shared.compute())
    return 2 * 4 * rows * model.facts.n_vocab
