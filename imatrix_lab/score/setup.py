"""How a model is run for items: the kernel and the settings, chosen once."""

from __future__ import annotations

from dataclasses import dataclass

from imatrix_lab import machine
from imatrix_lab.errors import BadModel
from imatrix_lab.progress import Progress
from imatrix_lab.records import Model
from imatrix_lab.score import check, kernel
from imatrix_lab.score.engine import Settings
from imatrix_lab.score.kernel import Kernel
from imatrix_lab.score.windows import SEQUENCES_MAX
from imatrix_lab.store import Store
from imatrix_lab.toolchain import Toolchain, cores

NOT_FINITE = "the model gives a logit that is not finite"
"""The error of an item, in its scores or its answer."""
CONTEXT_MAX = 8192
BATCH_TOKENS = 512
PARALLEL = 16


@dataclass(frozen=True)
class Setup:
    """What `choice.score` and `generate.generate` run with.

    Attributes
    ----------
    engine : its `n_ctx` is what a prompt and its answer may take together, in tokens.
    parallel : answers generated at once.
    """

    kernel: Kernel
    engine: Settings
    parallel: int = PARALLEL


def prepare(
    tools: Toolchain,
    model: Model,
    store: Store,
    progress: Progress,
    *,
    n_ctx: int | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    parallel: int = PARALLEL,
) -> Setup:
    """Return the setup for a model on this machine; None chooses.

    Raises
    ------
    BadModel : it has no vocabulary.
    """
    n_vocab = model.facts.n_vocab
    if not n_vocab:
        raise BadModel("this model has no vocabulary", where=model.path)
    if gpu_layers is None and tools.backend == "cpu":
        gpu_layers = 0
    settings = Settings(
        threads=threads or cores(),
        n_ctx=n_ctx or min(CONTEXT_MAX, model.facts.n_ctx_train or CONTEXT_MAX),
        n_batch=BATCH_TOKENS,
        n_rows=machine.logit_rows(n_vocab, tools.backend, gpu_layers),
        sequences_max=1 if check.is_recurrent(model) else SEQUENCES_MAX,
        gpu_layers=gpu_layers,
    )
    return Setup(kernel.get(tools, settings.threads, store, progress), settings, parallel)
