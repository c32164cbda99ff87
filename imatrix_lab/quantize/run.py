"""Model + imatrix + type -> a verified GGUF, by llama-quantize."""

import errno
import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imatrix_lab.core import config, process
from imatrix_lab.core.files import disk_error, flush, free_bytes, link, need_room, write_whole
from imatrix_lab.core.paths import without_folders
from imatrix_lab.core.progress import Progress, Task
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.errors import BadModel, BadText, ToolFailed, UsageError
from imatrix_lab.imatrix import format
from imatrix_lab.llamacpp import ggml, programs, size_types
from imatrix_lab.llamacpp.programs import Compute, QuantizeOptions
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import chance, resolve
from imatrix_lab.models.gguf import read_header
from imatrix_lab.quantize import awq, feedback, int4, metadata, sizes
from imatrix_lab.quantize.metadata import Value
from imatrix_lab.types import ImatrixFacts, Model, ModelFacts, QuantFacts

_REQUANTIZED = "this model is already quantized; quantizing it again loses quality"
_ORIGINAL = "use an F16, BF16 or F32 model"
_NOT_QUANTIZED = f"{_ORIGINAL}, or add --allow-requantize"
_NOT_REQUANTIZED = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64", "MXFP4", "NVFP4"}
"""Types of tensors in originals; models are published in the last two."""
VERIFY_WINDOWS = 4
VERIFY_TOKENS = 2 * VERIFY_WINDOWS * 512
"""More of a text is not read; twice what is, as what follows may change the last tokens."""
TRIES = 20
"""On a busy machine a short run loses its last line more often than not."""
WORSE_NATS = {1: 8.0, 2: 6.0, 3: 3.0, 4: 1.0}
"""By nominal bits: how much the held-out loss may grow, in nats a token, before a file is broken.

Quantization costs far less (at 2 bits up to about 3.5 nats on the demo model), a broken file far
more (it predicts about as well as chance: 10 nats and more)."""
_TOLD = "scaled.txt"
SCALED_NATS = 0.01
"""How far the held-out loss of a model with scaled channels may be from the model's own. F16 and
other sums move it by far less than a tenth of this."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out text to verify a quant with."""

    sha256: str
    text: str
    n_tokens: int
    name: str = ""
    """What it is, in words, for the model card."""

    def n_ctx(self) -> int:
        """Return the window length: 512, or less for a short text, but at least 32."""
        n_ctx = min(512, self.n_tokens // 2 // 32 * 32)
        if n_ctx < 32:
            raise BadText(f"{self.n_tokens} held-out tokens are too few to verify a quant with")
        return n_ctx

    def n_windows(self) -> int:
        """Return the number of windows: `VERIFY_WINDOWS`, or fewer for a short text."""
        return min(VERIFY_WINDOWS, self.n_tokens // self.n_ctx())


@dataclass(frozen=True)
class Options:
    """Compute settings, and whether an already quantized model is accepted."""

    compute: Compute
    allow_requantize: bool = False


@dataclass(frozen=True)
class Mix:
    """Types by tensor, and the standard type nearest to them, which the file's metadata shows."""

    base: str
    types: Mapping[str, str]


@dataclass(frozen=True)
class QuantSpec:
    """A quantized file to make, with values for its metadata, of at most 127 bytes each.

    `heldout` is None for a file that is scored anyway: then only its headers are checked, and its
    perplexities are NaN. With a `mix` of chosen types, `quant_type` says at what size: see
    `size_types`. `awq` needs an imatrix, `feedback` one with moments, and both their own
    `metadata`: see these modules. The types of `int4`, which need moments too, are F16 in the file.
    """

    model: Model
    imatrix: ImatrixFacts | None
    quant_type: str
    options: Options
    metadata: Mapping[str, Value] = field(default_factory=dict)
    heldout: HeldOut | None = None
    mix: Mix | None = None
    awq: bool = False
    feedback: bool = False

    def base(self) -> str:
        """Return llama-quantize's type."""
        if int4.is_int4(self.quant_type):
            return "F16"
        return self.mix.base if self.mix else self.quant_type

    def scales_channels(self) -> bool:
        """Return whether channels are scaled by AWQ."""
        return self.awq or self.quant_type == int4.AWQ

    def label(self) -> str:
        """Return model, language of the imatrix, and type, for names."""
        language = self._calibration(self.imatrix.language if self.imatrix else "none")
        return f"{self.model.label}-{language}-{size_types.in_name(self.quant_type, self.base())}"

    def file_name(self) -> str:
        """Return the name of the GGUF file."""
        language = self._calibration(self.imatrix.language if self.imatrix else "")
        return file_name(self.model.label, language, self.quant_type, self.base())

    def _calibration(self, language: str) -> str:
        return calibration(language, awq=self.awq, feedback=self.feedback)


def calibration(language: str, *, awq: bool, feedback: bool) -> str:
    """Return what quants are called by, beside model and type."""
    return language + "-awq" * awq + "-feedback" * feedback


def file_name(label: str, language: str, quant_type: str, base: str = "") -> str:
    """Return the name of a quant's file; no language: without an imatrix.

    Its last word is a type of llama-quantize, which the Hub and other programs look for.
    """
    name = size_types.in_name(quant_type, base)
    return "-".join(filter(None, (label, language, name))) + ".gguf"


def check(
    facts: ModelFacts, path: Path, types: Iterable[str], allow_requantize: bool | None
) -> None:
    """Raise BadModel if a model is quantized already, as llama-quantize does after other work.

    `allow_requantize` is None where there is no such option.
    """
    quantized = set(facts.tensor_types) - _NOT_REQUANTIZED
    if quantized and not allow_requantize and any(quantized != {t} for t in types):
        fix = _ORIGINAL if allow_requantize is None else _NOT_QUANTIZED
        raise BadModel(_REQUANTIZED, where=path, fix=fix)


def check_spec(spec: str, types: Iterable[str], allow_requantize: bool | None = None) -> None:
    """Do as `check` does for a model that a user named, if it is a file here."""
    if files := resolve.files_of(spec):
        check(resolve.facts(files), files[0], types, allow_requantize)


def check_layers(facts: ModelFacts, path: Path, types: Iterable[str]) -> None:
    """Raise BadModel if an imatrix of our own lacks layers that a type needs it for."""
    needing = [t for t in types if t in programs.NEED_EVERY_LAYER]
    if facts.n_mtp_layers and needing:
        what = f"{needing[0]} needs an imatrix of every layer, but llama-imatrix does not run this"
        what += f" model's layers for multi-token prediction (MTP, {facts.n_mtp_layers} of them)"
        raise BadModel(what, where=path, fix="choose a larger type, IQ3_S for example")


def check_types(types: Iterable[str]) -> None:
    """Raise UsageError for a type that llama-quantize does not make without an imatrix."""
    for quant_type in types:
        if quant_type in programs.NEED_IMATRIX:
            raise _needs_imatrix(quant_type)


def _needs_imatrix(quant_type: str) -> UsageError:
    fix = "give one (--imatrix FILE), or choose another type"
    return UsageError(f"{quant_type} requires an imatrix", fix=fix)


def dry_run(
    toolchain: Toolchain, model: Model, quant_type: str, options: Options, log: Path | None = None
) -> tuple[int, bool]:
    """Return a quant's size in bytes (to 0.01 MiB), and whether its type requires an imatrix."""
    output = _dry_run(toolchain, model, quant_type, options, log=log)
    if (size := programs.quant_size(output)) is None:
        raise BadModel(f"llama-quantize printed no size for {quant_type}", where=model.path)
    return size[0], "will require an imatrix" in output


def standard_types(
    toolchain: Toolchain, model: Model, quant_type: str, options: Options, imatrix: Path | None
) -> dict[str, str]:
    """Return the type of each tensor that llama-quantize quantizes, as it chooses them itself."""
    return programs.planned_types(_dry_run(toolchain, model, quant_type, options, imatrix))


def _dry_run(
    toolchain: Toolchain,
    model: Model,
    quant_type: str,
    options: Options,
    imatrix: Path | None = None,
    log: Path | None = None,
) -> str:
    """Return what llama-quantize prints of a file that it does not make."""
    output = list[str]()
    flags = QuantizeOptions(
        options.compute.threads,
        str(imatrix) if imatrix else None,
        allow_requantize=options.allow_requantize,
    )
    program = toolchain.program("llama-quantize")
    argv = programs.quantize_argv(program, model.path, None, quant_type, flags)
    process.run(argv, log=log, timeout_s=600, on_output=output.append)
    return "".join(output)


def inputs(spec: QuantSpec, toolchain: Toolchain) -> dict[str, Any]:
    """Return what determines a quantized file; threads do not."""
    mix = {"base": spec.mix.base, "types": dict(spec.mix.types)} if spec.mix else {}
    more = {"awq": awq.settings()} if spec.scales_channels() else {}
    more |= {"feedback": feedback.settings()} if spec.feedback else {}
    more |= {"int4": int4.settings()} if int4.is_int4(spec.quant_type) else {}
    return {
        "model_sha256": spec.model.sha256,
        "imatrix_sha256": spec.imatrix.sha256 if spec.imatrix else None,
        "type": spec.quant_type,
        "allow_requantize": spec.options.allow_requantize,
        "heldout_sha256": spec.heldout.sha256 if spec.heldout else None,
        "metadata": config.plain(spec.metadata),
        "repack": False,
        "toolchain": toolchain.signature(),
        **mix,
        **more,
    }


def quantize(toolchain: Toolchain, spec: QuantSpec, session: Session) -> QuantFacts:
    """Return a quantized file, made and verified unless the store has it."""
    model, heldout, seconds = spec.model, spec.heldout, list[float]()

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        log = scratch / "llama-quantize.log"
        need, requires_imatrix = dry_run(toolchain, model, spec.base(), spec.options, log)
        if requires_imatrix and not spec.imatrix:
            raise _needs_imatrix(spec.quant_type)
        value = reference = None
        if heldout:
            reference = perplexity(toolchain, model, heldout, spec.options, session)
            chance.require_better(math.log(reference), model)
        names = (spec.file_name(), "part.gguf", "fallback.json")
        path, part, notes = (scratch / name for name in names)
        if not path.exists():  # else an earlier run was stopped while verifying
            began, plain = time.monotonic(), scratch / "plain.gguf"
            source = spec
            if spec.scales_channels():
                source = _scaled(toolchain, spec, reference, scratch, session)
            if not plain.exists():  # else one was stopped while rounding
                need_room(session.store.root, need, f"{spec.quant_type} of {model.label}")
                fallback = run_quantize(toolchain, source, part, log, session.progress).fallback
                listed = [f"{n} {want} -> {got}" for n, want, got in fallback]
                write_whole(notes, json.dumps(listed))
                part.replace(plain)
            if spec.feedback or int4.is_int4(spec.quant_type):
                _round(toolchain, source, plain, session)
            plain.replace(path)
            if source is not spec:
                source.model.path.unlink()
            seconds.append(time.monotonic() - began)
        header = resolve.facts((path,))
        bits_per_weight = header.bits_per_weight
        if spec.imatrix and int4.is_int4(spec.quant_type):
            of = (spec.quant_type, path, model, spec.imatrix.path)
            bits_per_weight = int4.bits_per_weight(*of)
        if spec.mix:
            _require_types(path, spec.mix.types)
        if heldout and reference is not None:
            value = _perplexity(toolchain, path, heldout, spec.options, scratch, session.progress)
            _verify(value, reference, spec.base(), header.n_vocab, path)
        path.replace(out / path.name)
        if spec.mix:
            types_path(out / path.name).write_text(programs.types_file(spec.mix.types))
        return {
            "type": spec.quant_type,
            "file": path.name,
            "bits_per_weight": round(bits_per_weight, 4),
            "n_tensors": sum(header.tensor_types.values()),
            "tensor_types": header.tensor_types,
            "fallback": json.loads(notes.read_text()),
            **({"scaled": (scratch / _TOLD).read_text()} if spec.scales_channels() else {}),
            "perplexity": value,
            "perplexity_reference": reference,
            "n_windows": heldout.n_windows() if heldout else 0,
            "n_ctx": heldout.n_ctx() if heldout else 0,
            "gpu_layers": spec.options.compute.gpu_layers,
        }

    key = inputs(spec, toolchain)
    artifact = session.store.get("quant", spec.label(), key, make, session.progress)
    return replace(facts(artifact, *seconds), name=spec.file_name())


def _scaled(
    toolchain: Toolchain, spec: QuantSpec, reference: float | None, scratch: Path, session: Session
) -> QuantSpec:
    """Return the same quant of a model whose channels are scaled for it, with its own imatrix.

    Raises BadModel: no channels can be, or the scaled model does not compute the same.
    """
    model, imatrix = spec.model, spec.imatrix
    assert imatrix
    path = scratch / "scaled.gguf"
    own_imatrix = path.with_suffix(f".imatrix{imatrix.path.suffix}")
    scaled = replace(
        spec,
        model=replace(model, path=path, shards=(path,)),
        imatrix=replace(imatrix, path=own_imatrix),
    )
    if path.exists():
        return scaled
    known, library = awq.Activations.read(imatrix.path, model), ggml.load(toolchain)
    if int4.is_int4(spec.quant_type):
        search = awq.Search(library, model, known, int4.names(model), int4.for_awq)
    else:
        types: Mapping[str, str] = spec.mix.types if spec.mix else {}
        if not spec.mix:
            types = standard_types(toolchain, model, spec.quant_type, spec.options, imatrix.path)
        rounding = awq.by_ggml(library, types, known)
        if spec.feedback:
            rounding = awq.by_feedback(feedback.Kernel(toolchain, session), types, known)
        search = awq.Search(library, model, known, awq.rounded(types), rounding)
    places, threads = search.places(), spec.options.compute.threads
    found = awq.choose(search, places, threads, scratch / "scales.jsonl", session.progress)
    write_whole(scratch / _TOLD, awq.told(places, found))
    part = scratch / "scaling.gguf"
    awq.scaled(search, found, part, own_imatrix, session.progress)
    if spec.heldout and reference is not None:
        options, heldout = spec.options, spec.heldout
        value = _perplexity(toolchain, part, heldout, options, scratch, session.progress)
        if not abs(math.log(value / reference)) < SCALED_NATS:
            what = (
                f"scaling channels changes this model: perplexity {value:.4f}, not {reference:.4f}"
            )
            raise BadModel(what, where=model.path, fix=awq.WITHOUT)
    flush(part)
    part.replace(path)
    return scaled


def _round(toolchain: Toolchain, spec: QuantSpec, plain: Path, session: Session) -> None:
    assert spec.imatrix
    source = feedback.Source(spec.model, spec.imatrix.path)
    kernel = feedback.Kernel(toolchain, session)
    rounding: feedback.Rounding = kernel
    if int4.is_int4(spec.quant_type):
        rounding = int4.rounding(spec.quant_type, kernel)
        if narrow := int4.narrower(spec.quant_type, source.imatrix):
            what = f"note: these moments keep GPTQ's feedback {narrow}; moments of all columns"
            session.progress.say(f"{what} are collected with --full .")
    feedback.apply(rounding, source, plain, spec.options.compute.threads, session.progress)


def facts(artifact: Artifact, seconds: float | None = None) -> QuantFacts:
    """Return the facts in a quant's manifest."""
    recorded, name = artifact.facts, artifact.facts["file"]
    values = {key: recorded[key] for key in ("type", "bits_per_weight", "n_tensors", "n_windows")}
    for key in ("perplexity", "perplexity_reference"):
        values[key] = math.nan if recorded[key] is None else recorded[key]
    return QuantFacts(
        path=artifact.path / name,
        name=name,
        size_bytes=artifact.manifest["files"][name]["size_bytes"],
        sha256=artifact.sha256(name),
        fallback=tuple(recorded["fallback"]),
        scaled=recorded.get("scaled", ""),
        seconds=seconds,
        **values,
    )


def types_path(path: Path) -> Path:
    """Return where the types of a file's tensors lie, if they were chosen."""
    return path.with_suffix(".types.txt")


@dataclass(frozen=True)
class QuantizeRun:
    """Fallbacks of a llama-quantize run (tensor, requested type, type it got), and its seconds."""

    fallback: tuple[tuple[str, str, str], ...]
    seconds: float


def run_quantize(
    toolchain: Toolchain, spec: QuantSpec, target: Path, log: Path, progress: Progress
) -> QuantizeRun:
    """Run llama-quantize in the log's folder, so that no path of this machine enters the file."""
    model, options, imatrix_name = spec.model, spec.options, None
    if spec.imatrix:
        # without the model's name, which is not what the artefact is known by
        imatrix_name = sizes.imatrix_name(spec.imatrix)
        _place_imatrix(spec.imatrix.path, log.parent / imatrix_name)
    threads, allow_requantize = options.compute.threads, options.allow_requantize
    types_name = None
    if spec.mix:
        types_name = "types.txt"
        (log.parent / types_name).write_text(programs.types_file(spec.mix.types))
    values = dict(spec.metadata)
    if spec.imatrix and int4.is_int4(spec.quant_type):
        values |= int4.metadata(spec.quant_type, spec.imatrix.path)
    given = metadata.for_program(values)
    flags = QuantizeOptions(threads, imatrix_name, given, allow_requantize, types_name)
    program = toolchain.program("llama-quantize")
    argv = programs.quantize_argv(program, model.path, target, spec.base(), flags)
    steps, output = programs.Steps(programs.TENSOR), list[str]()
    n_weights = model.facts.n_parameters
    with progress.task(f"quantize {spec.quant_type}", n_weights, "weights") as task:

        def show(piece: str) -> None:
            output.append(piece)
            if steps.feed(piece):
                note = f"tensor {steps.last}/{steps.total}"
                task.update(n_weights * steps.last / steps.total, note)

        try:
            done = process.run(argv, log=log, cwd=log.parent, on_output=show)
        except ToolFailed as error:
            raise _explained(error, target) from error
    metadata.write_lists(target, values)
    flush(target)  # the next run takes it by its name
    return QuantizeRun(programs.fallbacks("".join(output)), done.seconds)


def _place_imatrix(path: Path, target: Path) -> None:
    """Put an imatrix where llama-quantize reads it, without folders in the names of its texts."""
    matrix = format.read(path)
    names = tuple(map(without_folders, matrix.datasets))
    if names == matrix.datasets:
        link(path, target)
    else:
        format.write(target, replace(matrix, datasets=names))


def _explained(error: ToolFailed, target: Path) -> Exception:
    """Return a clearer error for a known cause."""
    if "requantizing from type" in error.tail:
        return BadModel(_REQUANTIZED, fix=_NOT_QUANTIZED)
    if "iostream error" in error.tail and free_bytes(target) < 64 << 20:
        return disk_error(OSError(errno.ENOSPC, ""), target)
    return error


def perplexity(
    toolchain: Toolchain, model: Model, heldout: HeldOut, options: Options, session: Session
) -> float:
    """Return a model's perplexity over the first held-out windows; cached in the store."""
    key = {
        "model_sha256": model.sha256,
        "heldout_sha256": heldout.sha256,
        "n_ctx": heldout.n_ctx(),
        "n_windows": heldout.n_windows(),
        **options.compute.placement.signature(),
        "repack": False,
        "toolchain": toolchain.signature(),
    }

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        value = _perplexity(toolchain, model.path, heldout, options, scratch, session.progress)
        if not math.isfinite(value):
            raise BadModel(f"this model's perplexity on held-out text is {value}", where=model.path)
        return {"perplexity": value}

    label = f"{model.label}-{heldout.sha256[:8]}"
    artifact = session.store.get("perplexity", label, key, make, session.progress)
    return float(artifact.facts["perplexity"])


def _perplexity(
    toolchain: Toolchain,
    path: Path,
    heldout: HeldOut,
    options: Options,
    scratch: Path,
    progress: Progress,
) -> float:
    text, log = scratch / "heldout.txt", scratch / "perplexity.log"
    text.write_bytes((heldout.text + "\n").encode())
    n_ctx, n_windows = heldout.n_ctx(), heldout.n_windows()
    compute = Compute(options.compute.threads, n_ctx, n_ctx, n_ctx, *options.compute.placement)
    program = toolchain.program("llama-perplexity")
    argv = programs.perplexity_argv(program, path, text, compute, n_windows=n_windows)
    for _ in range(TRIES):  # see programs.final_perplexity
        steps = programs.Steps(programs.WINDOW)
        with progress.task(f"perplexity of {path.name}", n_windows * n_ctx, "tokens") as task:

            def show(piece: str, task: Task = task, steps: programs.Steps = steps) -> None:
                task.update(steps.feed(piece) * n_ctx)

            done = process.run(argv, log=log, on_output=show)
        if (value := programs.final_perplexity(done.tail, n_windows)) is not None:
            return value
    raise BadModel("llama-perplexity printed no result", where=f"{path.name}, log {log}")


def _require_types(path: Path, types: Mapping[str, str]) -> None:
    """Raise BadModel if a file has other types than those chosen."""
    got = {t.name: t.type_name for t in read_header(path).tensors}
    if differing := [name for name, chosen in types.items() if got.get(name) != chosen]:
        name = differing[0]
        what = f"llama-quantize made {name} {got.get(name)}, not {types[name]}"
        raise BadModel(f"{what} ({len(differing)} such tensors)", where=path.name)


def _verify(value: float, reference: float, quant_type: str, n_vocab: int, target: Path) -> None:
    digits = re.search(r"\d+", quant_type)
    bits = min(4, int(digits[0])) if digits else 4
    worst = min(max(n_vocab, 2 * reference), reference * math.exp(WORSE_NATS[max(1, bits)]))
    if not math.isfinite(value) or value > worst:
        what = f"{quant_type} is broken: perplexity {value:.4g} on held-out text"
        what += f", {reference:.4g} before quantizing"
        fix = "check the imatrix and the input model; with no imatrix: --imatrix none"
        raise BadModel(what, where=target.name, fix=fix)
