"""Model + imatrix + type -> a verified GGUF, by llama-quantize."""

import errno
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.core import process
from imatrix_lab.core.files import disk_error, free_bytes, need_room
from imatrix_lab.core.progress import Progress, Task
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.errors import BadModel, BadText, ToolFailed, UsageError
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import resolve
from imatrix_lab.types import ImatrixFacts, Model, QuantFacts

VERIFY_WINDOWS = 4
TRIES = 5
WORSE_NATS = {1: 8.0, 2: 6.0, 3: 3.0, 4: 1.0}
"""By nominal bits: how much the loss over held-out text may grow before a file is called broken.

Far above what quantization does (at 2 bits up to about 3.5 nats on the demo model), far below
what a broken file shows (it predicts about as well as chance, 10 nats and more)."""


@dataclass(frozen=True)
class HeldOut:
    """Text to verify with: its sha256, the text, how many tokens it has."""

    sha256: str
    text: str
    n_tokens: int

    def n_ctx(self) -> int:
        """Return the window length: 512, or less where the text is short.

        Raises
        ------
        BadText : too little even for two windows of 32.
        """
        n_ctx = min(512, self.n_tokens // 2 // 32 * 32)
        if n_ctx < 32:
            raise BadText(f"{self.n_tokens} held-out tokens are too few to verify a quant with")
        return n_ctx

    def n_windows(self) -> int:
        """Return how many windows are read: `VERIFY_WINDOWS`, or what there is."""
        return min(VERIFY_WINDOWS, self.n_tokens // self.n_ctx())


@dataclass(frozen=True)
class Options:
    """Threads and whether an already quantized input is accepted."""

    compute: Compute
    allow_requantize: bool = False


def estimate(
    toolchain: Toolchain, model: Model, quant_type: str, options: Options, log: Path | None = None
) -> int:
    """Return the size in bytes of a type, by llama-quantize's own dry run (to 0.01 MiB)."""
    return dry_run(toolchain, model, quant_type, options, log)[0]


def dry_run(
    toolchain: Toolchain, model: Model, quant_type: str, options: Options, log: Path | None = None
) -> tuple[int, bool]:
    """Return a type's size in bytes, and whether llama-quantize makes it with an imatrix only."""
    argv = programs.quantize_argv(
        toolchain.program("llama-quantize"), model.path, None, quant_type, options.compute.threads,
        allow_requantize=options.allow_requantize,
    )  # fmt: skip
    tail = process.run(argv, log=log, timeout_s=600).tail
    size = programs.quant_size(tail)
    if size is None:
        raise BadModel(
            f"llama-quantize cannot tell how large {quant_type} would be", where=model.path
        )
    return size[0], programs.wants_imatrix(tail)


def inputs(
    model: Model,
    imatrix: ImatrixFacts | None,
    quant_type: str,
    heldout: HeldOut | None,
    metadata: Mapping[str, str],
    options: Options,
    toolchain: Toolchain,
) -> dict[str, Any]:
    """Return what determines a quantized file; threads do not."""
    return {
        "model_sha256": model.sha256,
        "imatrix_sha256": imatrix.sha256 if imatrix else None,
        "type": quant_type,
        "allow_requantize": options.allow_requantize,
        "heldout_sha256": heldout.sha256 if heldout else None,
        "metadata": dict(metadata),
        "toolchain": toolchain.signature(),
    }


def quantize(
    toolchain: Toolchain,
    model: Model,
    imatrix: ImatrixFacts | None,
    quant_type: str,
    heldout: HeldOut | None,
    metadata: Mapping[str, str],
    options: Options,
    session: Session,
) -> QuantFacts:
    """Return one quantized file, made if it is not there, and verified.

    Parameters
    ----------
    heldout : None for a file that is scored anyway: then only its headers are read, and its
        perplexities are NaN.
    metadata : strings for the GGUF's metadata, at most 127 bytes each.

    Raises
    ------
    DiskFull : it would not fit; checked before the work.
    BadModel : the result does not load, or predicts held-out text far worse than the original.
    UsageError : the type takes an imatrix.
    ToolFailed : llama-quantize failed.
    """
    seconds: list[float] = []

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        log = scratch / "llama-quantize.log"
        need, wants_imatrix = dry_run(toolchain, model, quant_type, options, log)
        if wants_imatrix and not imatrix:
            raise UsageError(
                f"{quant_type} takes an imatrix", fix="give one, or choose another type"
            )
        reference = None
        if heldout:
            reference = perplexity(toolchain, model, heldout, options, session)
        made, notes = scratch / _file_name(model, imatrix, quant_type), scratch / "fallback.json"
        if not made.exists():  # else an earlier run was stopped while verifying
            need_room(session.store.root, need, f"{quant_type} of {model.label}")
            part = scratch / "part.gguf"
            done = run(
                toolchain,
                model,
                imatrix,
                quant_type,
                part,
                metadata,
                options,
                log,
                session.progress,
            )
            seconds.append(done.seconds)
            notes.write_text(json.dumps([f"{n} {want} -> {got}" for n, want, got in done.fallback]))
            part.replace(made)
        read = resolve.facts((made,))
        found = None
        if heldout and reference is not None:
            log = scratch / "perplexity.log"
            found = _perplexity(toolchain, made, heldout, options, log, scratch, session.progress)
            _verify(found, reference, quant_type, read.n_vocab, made)
        made.replace(out / made.name)
        return {
            "type": quant_type,
            "file": made.name,
            "bits_per_weight": round(read.bits_per_weight, 4),
            "n_tensors": sum(read.tensor_types.values()),
            "tensor_types": read.tensor_types,
            "fallback": json.loads(notes.read_text()),
            "perplexity": found,
            "perplexity_reference": reference,
            "n_windows": heldout.n_windows() if heldout else 0,
            "n_ctx": heldout.n_ctx() if heldout else 0,
            "gpu_layers": options.compute.gpu_layers,
        }

    label = f"{model.label}-{imatrix.language if imatrix else 'none'}-{quant_type}"
    wanted = inputs(model, imatrix, quant_type, heldout, metadata, options, toolchain)
    return facts(session.store.get("quant", label, wanted, make, session.progress), *seconds)


def facts(artifact: Artifact, seconds: float | None = None) -> QuantFacts:
    """Return what a quant's manifest says."""
    found = artifact.facts
    name = found["file"]
    return QuantFacts(
        type=found["type"],
        path=artifact.path / name,
        size_bytes=artifact.manifest["files"][name]["size_bytes"],
        sha256=artifact.sha256(name),
        bits_per_weight=found["bits_per_weight"],
        n_tensors=found["n_tensors"],
        fallback=tuple(found["fallback"]),
        perplexity=_or_nan(found["perplexity"]),
        perplexity_reference=_or_nan(found["perplexity_reference"]),
        n_windows=found["n_windows"],
        seconds=seconds,
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _file_name(model: Model, imatrix: ImatrixFacts | None, quant_type: str) -> str:
    language = f"-{imatrix.language}" if imatrix else ""
    return f"{model.label}{language}-{quant_type}.gguf"


@dataclass(frozen=True)
class Run:
    """What llama-quantize said: fallbacks (tensor, wanted type, given type), and its seconds."""

    fallback: tuple[tuple[str, str, str], ...]
    seconds: float


def run(
    toolchain: Toolchain, model: Model, imatrix: ImatrixFacts | None, quant_type: str, target: Path,
    metadata: Mapping[str, str], options: Options, log: Path, progress: Progress,
) -> Run:  # fmt: skip
    """Run llama-quantize in the log's folder, so that no path of this machine enters the file."""
    name = None
    if imatrix:
        suffix = ".dat" if imatrix.path.suffix == ".dat" else ".gguf"  # it reads both, by content
        name = f"{model.label}-{imatrix.language}.imatrix{suffix}"
        link = log.parent / name
        link.unlink(missing_ok=True)
        link.symlink_to(imatrix.path)
    argv = programs.quantize_argv(
        toolchain.program("llama-quantize"), model.path, target, quant_type,
        options.compute.threads,
        imatrix=name, metadata=dict(metadata), allow_requantize=options.allow_requantize,
    )  # fmt: skip
    steps, output = programs.tensor_steps(), list[str]()
    with progress.task(
        f"quantize {quant_type}", float(model.facts.n_parameters), "weights"
    ) as task:

        def show(piece: str) -> None:
            output.append(piece)
            steps.feed(piece)
            if steps.total:
                share = steps.last / steps.total
                task.update(share * model.facts.n_parameters, f"tensor {steps.last}/{steps.total}")

        try:
            done = process.run(argv, log=log, cwd=log.parent, on_output=show)
        except ToolFailed as error:
            raise _explained(error, target) from error
    return Run(programs.fallbacks("".join(output)), done.seconds)


def _explained(error: ToolFailed, target: Path) -> Exception:
    """Return a better error where the cause can be told."""
    if "requantizing from type" in error.tail:
        return BadModel(
            "this model is already quantized; quantizing it again loses quality",
            fix="use an F16, BF16 or F32 model, or add --allow-requantize",
        )
    if "iostream error" in error.tail and free_bytes(target) < 64 << 20:
        return disk_error(OSError(errno.ENOSPC, ""), target)
    return error


def perplexity(
    toolchain: Toolchain,
    model: Model,
    heldout: HeldOut,
    options: Options,
    session: Session,
) -> float:
    """Return a model's perplexity over the first held-out windows; remembered in the store."""
    wanted = {
        "model_sha256": model.sha256,
        "heldout_sha256": heldout.sha256,
        "n_ctx": heldout.n_ctx(),
        "n_windows": heldout.n_windows(),
        "gpu_layers": options.compute.gpu_layers,
        "toolchain": toolchain.signature(),
    }

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        log = scratch / "perplexity.log"
        found = _perplexity(toolchain, model.path, heldout, options, log, scratch, session.progress)
        if not math.isfinite(found):
            raise BadModel(f"this model's perplexity on held-out text is {found}", where=model.path)
        return {"perplexity": found}

    label = f"{model.label}-{heldout.sha256[:8]}"
    return float(
        session.store.get("perplexity", label, wanted, make, session.progress).facts["perplexity"]
    )


def _perplexity(
    toolchain: Toolchain, path: Path, heldout: HeldOut, options: Options, log: Path, scratch: Path,
    progress: Progress,
) -> float:  # fmt: skip
    text = scratch / "heldout.txt"
    text.write_bytes((heldout.text + "\n").encode())
    n_ctx, n_windows = heldout.n_ctx(), heldout.n_windows()
    compute = Compute(options.compute.threads, n_ctx, n_ctx, n_ctx, options.compute.gpu_layers)
    argv = programs.perplexity_argv(
        toolchain.program("llama-perplexity"), path, text, compute, n_windows=n_windows
    )
    for _ in range(TRIES):  # see llamacpp.final_perplexity
        steps = programs.window_steps()
        with progress.task(f"perplexity of {path.name}", n_windows * n_ctx, "tokens") as task:

            def show(piece: str, task: Task = task, steps: programs.Steps = steps) -> None:
                task.update(steps.feed(piece) * n_ctx)

            done = process.run(argv, log=log, on_output=show)
        value = programs.final_perplexity(done.tail, n_windows)
        if value is not None:
            return value
    raise BadModel("llama-perplexity printed no result", where=f"{path.name}, log {log}")


def _verify(found: float, reference: float, quant_type: str, n_vocab: int, target: Path) -> None:
    digits = re.search(r"\d+", quant_type)
    bits = min(4, int(digits[0])) if digits else 4
    chance = max(float(n_vocab), 2 * reference)
    worst = min(chance, reference * math.exp(WORSE_NATS[max(1, bits)]))
    if not math.isfinite(found) or found > worst:
        raise BadModel(
            f"{quant_type} came out broken: perplexity {found:.4g} on held-out text,"
            f" {reference:.4g} before quantizing",
            where=target.name,
            fix="check the imatrix and the input model; with no imatrix: --imatrix none",
        )
