"""What a scoring run consists of, how its models are run, and the rows it produces."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadModel
from imatrix_lab.llamacpp import compute, offload
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.toolchain import Toolchain, cores
from imatrix_lab.score import compatible, kernel
from imatrix_lab.score.engine import Engine, Settings, rates
from imatrix_lab.score.kernel import Kernel, Rows
from imatrix_lab.score.text import Batches, Text
from imatrix_lab.score.windows import SEQUENCES_MAX, Protocol, Step, steps
from imatrix_lab.types import ComputeOptions, Model

METRICS_VERSION = 1
"""Raise it when the same models and text give other numbers. 1: first records."""
NOT_FINITE = "the model gives a logit that is not finite"  # an item's error
CONTEXT_MAX, BATCH_TOKENS, PARALLEL = 8192, 512, 16


def settings_for(
    model: Model, options: ComputeOptions, n_ctx: int, n_rows: int | None = None
) -> Settings:
    """Return how to run a model with windows of `n_ctx` tokens; it must have a vocabulary.

    On a GPU it is not `placed` yet.
    """
    if not model.facts.n_vocab:
        raise BadModel("this model has no vocabulary", where=model.path)
    return Settings(
        threads=options.threads or cores(),
        n_ctx=n_ctx,
        n_batch=BATCH_TOKENS,
        n_rows=n_rows or compute.logit_rows(model.facts.n_vocab, options),
        sequences_max=1 if compatible.is_recurrent(model) else SEQUENCES_MAX,
        **compute.placement(options)._asdict(),
    )


def placed(
    tools: Toolchain,
    models: Sequence[Model],
    settings: Settings,
    options: ComputeOptions,
    session: Session,
    streams: int = 1,
) -> Settings:
    """Return settings with which models, the largest first, are in memory together.

    streams : sequences with a memory of `n_ctx` tokens of their own.
    """
    layout = offload.Layout(streams * settings.n_ctx, settings.n_batch, streams)
    placement = offload.planned(tools, [model.path for model in models], layout, options)
    if placement != settings.placement:
        session.progress.say(f"{models[0].label}: {offload.in_words(placement)}")
    return replace(settings, **placement._asdict())


@dataclass(frozen=True)
class Setup:
    """What `multiple_choice.score` and `generate.generate` run with.

    `engine`: its `n_ctx` limits a prompt and its answer together. `parallel`: answers at once.
    """

    kernel: Kernel
    engine: Settings
    parallel: int = PARALLEL


def prepare(
    tools: Toolchain, model: Model, session: Session, options: ComputeOptions, parallel: int
) -> Setup:
    """Return the setup of a model on this machine; it must have a vocabulary."""
    n_ctx = options.n_ctx or min(CONTEXT_MAX, model.facts.n_ctx_train or CONTEXT_MAX)
    settings = settings_for(model, options, n_ctx)
    settings = placed(tools, [model], settings, options, session, parallel)
    return Setup(kernel.get(tools, settings.threads, session), settings, parallel)


@dataclass(frozen=True)
class Job:
    """A reference on a text, with one protocol and one way of running models."""

    tools: Toolchain
    kernel: Kernel
    reference: Model
    text: Text
    plan: Batches
    protocol: Protocol
    settings: Settings

    def steps(self, batch: int) -> Iterator[Step]:
        """Yield the decodes of a batch."""
        return steps(self.plan.batches[batch], self.settings.n_batch, self.settings.n_rows)

    def inputs(self) -> dict[str, Any]:
        """Return what determines the reference's distributions."""
        return {
            "metrics_version": METRICS_VERSION,
            "toolchain": self.tools.signature(),
            "reference_sha256": self.reference.sha256,
            "text_sha256": self.text.sha256(),
            "protocol": asdict(self.protocol),
            "settings": self.settings.signature(),
        }


@contextmanager
def decoding(
    job: Job, models: Sequence[Model], name: str, complete: Sequence[bool], progress: Progress
) -> Iterator[tuple[list[Engine], Callable[[int], None]]]:
    """Load models; give them, and what reports progress, called with the tokens just decoded."""
    interruptible, sizes = Interruptible(), job.plan.sizes()
    done = sum(n for n, is_done in zip(sizes, complete, strict=True) if is_done)
    with progress.task(name, sum(sizes), "tokens") as task, ExitStack() as stack:
        engines = [
            stack.enter_context(Engine(job.tools, job.kernel, model, job.settings, interruptible))
            for model in models
        ]
        task.update(done, "continuing where the last run stopped" if done else "")

        def advance(n_tokens: int) -> None:
            nonlocal done
            done += n_tokens
            task.update(done, rates(engines))

        yield engines, advance
        progress.say(f"llama_decode, tokens/s: {rates(engines)}")


def identity(model: Model) -> dict[str, Any]:
    """Return which file a model is, for signatures."""
    return {"sha256": model.sha256, "name": model.label, "type": model.facts.file_type}


def origin(quant: Model) -> dict[str, Any]:
    """Return a quant's size, and the imatrix it was made with, for signatures."""
    return {
        "size_bytes": quant.facts.size_bytes,
        "bits_per_weight": round(quant.facts.bits_per_weight, 4),
        "imatrix_sha256": quant.facts.imatrix_sha256,
        "calibration": quant.facts.calibration,
    }


def row_type() -> np.dtype[Any]:
    """Return the type of one scored token's row: nats as float32, token ids as int32."""
    floats, ids = ("nll_ref", "nll", "kld", "kld_full"), ("top1_ref", "top1")
    return np.dtype([(name, "f4") for name in floats] + [(name, "i4") for name in ids])


def packed(
    targets: np.ndarray, ref_logits: np.ndarray, ref_rows: Rows, logits: np.ndarray, rows: Rows
) -> np.ndarray:
    """Return rows of `row_type`: NLL of the true tokens, KL divergence, top tokens."""
    result = np.empty(len(targets), row_type())
    result["nll_ref"] = nll(targets, ref_logits, ref_rows)
    result["nll"] = nll(targets, logits, rows)
    result["kld"] = result["kld_full"] = rows.kld
    result["top1_ref"], result["top1"] = ref_rows.top, rows.top
    return result


def nll(targets: np.ndarray, logits: np.ndarray, rows: Rows) -> np.ndarray:
    """Return -ln p of the true tokens, float64 (n,)."""
    negative: np.ndarray = rows.log_sum - logits[np.arange(len(targets)), targets]
    return negative
