"""What the steps of a study share: recipe, models, tools, what may be used of the machine."""

import dataclasses
from dataclasses import dataclass

from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import ImatrixLabError, UsageError
from imatrix_lab.llamacpp import compute, toolchain
from imatrix_lab.llamacpp.toolchain import Toolchain, cores
from imatrix_lab.models import convert, resolve
from imatrix_lab.models.tokenizer import silence
from imatrix_lab.quantize import run
from imatrix_lab.report.results import Missing
from imatrix_lab.study import recipe as recipes
from imatrix_lab.study import validate
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.recipe import Recipe
from imatrix_lab.study.scheduler import Limits
from imatrix_lab.types import ComputeOptions, Model


@dataclass(frozen=True)
class Shared:
    """What every step may look at.

    Attributes
    ----------
    models : each under a label of its own.
    sizes : bytes of a quant, by model's label and type.
    missing : models that could not be had.
    """

    recipe: Recipe
    folder: Folder
    store: Store
    tools: Toolchain
    models: tuple[Model, ...]
    sizes: dict[tuple[str, str], int]
    missing: tuple[Missing, ...] = ()

    @property
    def work(self) -> Store:
        """A store of the study's own, for quants that do not stay."""
        return Store(self.folder.of("work"))

    @property
    def keeps_quants(self) -> bool:
        """Whether quants stay."""
        return self.recipe.keep == "all"

    def compute(self, threads: int | None = None, n_ctx: int | None = None) -> ComputeOptions:
        """Return how to run a program."""
        layers = self.recipe.limits.gpu_layers
        gpu_layers = None if layers < 0 else layers
        return ComputeOptions(self.tools.backend, threads, n_ctx, gpu_layers=gpu_layers)

    def memory_bytes(self) -> int:
        """Return what the study may take at a time."""
        asked = self.recipe.limits.memory_gib
        return int(asked * 2**30) or int(compute.MEMORY_SHARE * compute.memory_bytes())

    def limits(self, jobs: int | None) -> Limits:
        """Return what may run at a time; a GPU has one user."""
        asked = self.recipe.limits
        most = cores() if self.tools.backend == "cpu" else 1
        return Limits(
            min(jobs or asked.jobs or most, most), cores(), self.memory_bytes(), asked.threads
        )


def prepare(recipe: Recipe, folder: Folder, session: Session) -> Shared:
    """Return what the steps share; llama.cpp is built and models are fetched if need be.

    Raises
    ------
    ImatrixLabError : there is no model at all, or no llama.cpp.
    """
    tools = toolchain.get(validate.backend(recipe), session)
    silence(tools.bindings())  # once, before there are threads
    found: list[Model] = []
    missing = []
    named = recipes.without_folders(recipe).models
    for spec, name in zip(recipe.models, named, strict=True):
        try:
            one = resolve.resolve(spec, session, convert.converter(tools))
        except ImatrixLabError as error:
            if len(recipe.models) == 1:
                raise
            missing.append(Missing(f"model {name}", error.what, error.fix or "", ("all of it",)))
            continue
        taken = any(m.label == one.label for m in found)
        label = f"{one.label}-{one.sha256[:8]}" if taken else one.label
        found.append(dataclasses.replace(one, label=label))
    if not found:
        raise UsageError("none of the models can be had", fix=missing[0].fix)
    sizes = {
        (model.label, kind): _size_bytes(tools, model, kind)
        for model in found
        for kind in recipe.types
    }
    return Shared(recipe, folder, session.store, tools, tuple(found), sizes, tuple(missing))


def _size_bytes(tools: Toolchain, model: Model, kind: str) -> int:
    settings = compute.compute_for(model.facts, ComputeOptions(tools.backend, threads=1))
    options = run.Options(settings)
    return run.estimate(tools, model, kind, options)


def logits_bytes(model: Model, shared: Shared) -> int:
    """Return what a model that is scored needs besides its weights: logits, twice."""
    rows = compute.logit_rows(model.facts.n_vocab, shared.compute())
    return 2 * 4 * rows * model.facts.n_vocab
