"""An importance matrix of a model on a text, collected in process.

The model reads windows of tokens (see `windows`). Attention is computed without flash attention,
which would sum in another order for each batch: so neither threads nor the number of windows in a
decode change a bit on a CPU. Sums are saved between decodes; a run that was killed goes on from
there and ends with the same bytes. Shards of the text may be summed elsewhere (`collect_shards`).
"""

import itertools
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.files import need_room
from imatrix_lab.core.format import size
from imatrix_lab.core.progress import Task
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.errors import BadImatrix, BadModel, ImatrixLabError, UsageError
from imatrix_lab.imatrix import (
    collector,
    devices,
    expected,
    format,
    moments,
    passes,
    speed,
    validate,
    windows,
)
from imatrix_lab.imatrix.collector import SHARD, Collector
from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.imatrix.windows import DOCUMENT, STREAM, Windows
from imatrix_lab.llamacpp import native
from imatrix_lab.llamacpp.compute import MEMORY_SHARE, free_memory_bytes
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.llamacpp.toolchain import ON_GPU, Toolchain
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import read_header
from imatrix_lab.models.tokenizer import forget_log, reason, silence
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model, Part

FILE = "imatrix.gguf"
SAVED = "sums.bin"
_SUMS = "sums"  # of a shard, in the store
SAVE_S = 30.0
"""Seconds of work that a kill may cost, but for disks so slow that saving takes `SAVE_SHARE`."""
SAVE_SHARE = 0.05
_READS = 1 << 20
"""Bytes a second from which on reading is worth a word."""
_ABORTED = 2  # of llama_decode
_SMALLER = "if memory is short, use a smaller --batch or --ctx"


@dataclass(frozen=True)
class Options:
    """How the model runs, and what is collected.

    moments : E[x] and blocks of E[x xᵀ] too (see `moments`).
    full : a regular expression; inputs of the matrices that it matches are kept whole.
    windows : of `windows.KINDS`.
    memory_bytes : for all of it; None: what is free.
    fit_target_mib : what stays free on each GPU, MiB.
    may_grow : more windows may be read at once where a GPU does not hold the model.
    """

    compute: Compute
    parse_special: bool = False
    process_output: bool = False
    moments: bool = False
    full: str = ""
    windows: str = STREAM
    memory_bytes: int | None = None
    fit_target_mib: int = 1024
    may_grow: bool = False


def inputs(
    model: Model, corpus: CorpusFacts, options: Options, toolchain: Toolchain
) -> dict[str, Any]:
    """Return what determines an imatrix; threads do not, nor do windows in a decode on a CPU."""
    compute, on_cpu = options.compute, _on_cpu(options, toolchain)
    in_pieces = options.moments and compute.n_batch < compute.n_ctx  # of float products
    more = {"moments": collector.BLOCK, "full": options.full} if options.moments else {}
    if options.windows == DOCUMENT:
        n_windows, more["document_ends"] = None, corpus.document_ends
    else:
        n_windows = windows.count(corpus, compute.n_ctx)
    if n_windows is None or n_windows > SHARD:  # fewer are summed as if there were no shards
        more["shard_windows"] = SHARD
    return {
        "model_sha256": model.sha256,
        "corpus_sha256": corpus.sha256,
        "n_windows": n_windows,
        "n_ctx": compute.n_ctx,
        "n_batch": None if on_cpu and not in_pieces else compute.n_batch,
        **compute.placement.signature(),
        "parse_special": options.parse_special,
        "process_output": options.process_output,
        "repack": False,
        "flash_attention": False,
        "toolchain": toolchain.signature(),
        **more,
    }


def identity(model: Model, corpus: CorpusFacts, options: Options) -> dict[str, Any]:
    """Return what an imatrix file of these has in its metadata, whatever built it."""
    same = {
        "imatrix_lab.model.sha256": model.sha256,
        **format.named(corpus.language),
        "imatrix_lab.corpus.sha256": corpus.sha256,
        "imatrix.chunk_size": options.compute.n_ctx,
    }
    if options.windows == DOCUMENT:
        return same | {format.WINDOWS: DOCUMENT}
    n_windows = windows.count(corpus, options.compute.n_ctx)
    return same | {format.WINDOWS: None, "imatrix.chunk_count": n_windows}


def collect(
    toolchain: Toolchain, model: Model, corpus: CorpusFacts, options: Options, session: Session
) -> ImatrixFacts:
    """Return the imatrix of a text, checked; from the store, or collected now.

    Raises BadImatrix, which names the tensors. Sums that were saved are kept.
    """
    options = _placed(toolchain, model, options, corpus.n_tokens, session)
    key, label = inputs(model, corpus, options, toolchain), f"{model.label}-{corpus.language}"

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        read = _windows(toolchain, model, corpus, options, session)
        n_windows, n_ctx, n_tokens = len(read), options.compute.n_ctx, sum(map(len, read))
        tensors, shards = expected.of(model), _shards(key, n_windows)
        known = {i: session.store.find(_SUMS, shard) for i, shard in enumerate(shards)}
        found = {i: artifact.path / SAVED for i, artifact in known.items() if artifact}
        sums, opened = _collector(toolchain, model, options, n_windows, session)
        with session.progress.task(f"imatrix {corpus.language}", n_tokens, "tokens") as task, sums:
            _run(read, sums, opened, scratch / SAVED, task, found)
            entries = sums.entries()
            about, more = moments.of(sums) if options.moments else ({}, ())
            imatrix = format.Imatrix(
                entries,
                (f"{corpus.language} {corpus.source}",),
                n_windows,
                n_ctx,
                metadata=_metadata(toolchain, model, corpus, options) | about,
                more=more,
            )
            findings = validate.check(imatrix, tensors, n_tokens)
            fix = "use another text or backend; to compute it again: rm -r "
            fix += shlex.quote(str(scratch.parent))
            findings.require_sound(model.path, fix, session.progress)
            if more:
                need_room(out, sum(t.size_bytes() for t in more), "the moments")
            format.write(out / FILE, imatrix)
        (scratch / SAVED).unlink(missing_ok=True)
        for i in found:
            session.store.drop(_SUMS, shards[i], session.progress)
        return {
            "language": corpus.language,
            "n_tensors": len(entries),
            "n_tokens": n_tokens,
            "n_chunks": n_windows,
            "n_ctx": n_ctx,
            "unhit_experts": findings.n_without_tokens,
        }

    artifact = session.store.get("imatrix", label, key, make, session.progress)
    return facts(_named(artifact, label, corpus, session))


def collect_shards(
    toolchain: Toolchain,
    model: Model,
    corpus: CorpusFacts,
    options: Options,
    part: Part,
    session: Session,
) -> None:
    """Let the store have the sums of some shards of a text, until its imatrix is there.

    Not with second moments, whose sums are too large to be kept more than once.

    part : of the shards.
    """
    options = _placed(toolchain, model, options, corpus.n_tokens, session)
    key, label = inputs(model, corpus, options, toolchain), f"{model.label}-{corpus.language}"
    if session.store.find("imatrix", key):
        return
    read = _windows(toolchain, model, corpus, options, session)
    every = _shards(key, len(read))

    def make(number: int, out: Path, scratch: Path) -> Mapping[str, Any]:
        own = read[number * SHARD : (number + 1) * SHARD]
        sums, opened = _collector(toolchain, model, options, len(own), session)
        n_tokens, what = sum(map(len, own)), f"imatrix {corpus.language}, shard {number + 1}"
        with session.progress.task(what, n_tokens, "tokens") as task, sums:
            _run(own, sums, opened, scratch / SAVED, task)
            sums.save(out / SAVED, len(own))
        return {"n_windows": len(own)}

    for i in range(len(every))[part[0] :: part[1]]:
        session.store.get(_SUMS, label, every[i], partial(make, i), session.progress)


def _shards(key: Mapping[str, Any], n_windows: int) -> list[dict[str, Any]]:
    """Return what determines the sums of each shard of an imatrix's text."""
    return [{**key, "shard": i} for i in range(-(-n_windows // SHARD))]


def _collector(
    toolchain: Toolchain, model: Model, options: Options, n_windows: int, session: Session
) -> tuple[Collector, Callable[[], "_Context"]]:
    """Return empty sums, and what opens the model that adds so many windows to them."""
    run, settings = Interruptible(), _settings(expected.of(model), model, options)
    running = _planned(toolchain, model, options, n_windows, session)
    sums = Collector(toolchain, settings, run.flag, session)
    return sums, partial(_Context, toolchain, model, sums, running, run)


def _named(artifact: Artifact, label: str, corpus: CorpusFacts, session: Session) -> Artifact:
    """Return an imatrix with the names of this corpus: the store knows texts by their content."""
    imatrix, dataset = format.read(artifact.path / FILE), f"{corpus.language} {corpus.source}"
    metadata = format.named(corpus.language) | _text(corpus)
    if imatrix.datasets == (dataset,) and metadata.items() <= imatrix.metadata.items():
        return artifact

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        unnamed = format.unnamed(imatrix.metadata)
        whole = replace(imatrix, datasets=(dataset,), metadata=unnamed | metadata)
        format.write(out / FILE, whole)
        return {**artifact.facts, "language": corpus.language}

    inputs = {"named_sha256": artifact.sha256(FILE), "dataset": dataset, **metadata}
    return session.store.get("imatrix", label, inputs, make, session.progress)


def _planned(
    toolchain: Toolchain, model: Model, options: Options, n_windows: int, session: Session
) -> Options:
    """Return options that read a model larger than memory as seldom as memory allows."""
    compute, memory = options.compute, options.memory_bytes or free_memory_bytes()
    larger = options.memory_bytes or model.facts.size_bytes > MEMORY_SHARE * memory
    if not (larger and _on_cpu(options, toolchain) and compute.n_batch == compute.n_ctx):
        return options
    how = _estimate_in_memory(toolchain, model, options, n_windows, session)
    for line in how.lines():
        session.progress.say(line)
    return replace(options, compute=replace(compute, n_batch=how.plan.n_at_once * compute.n_ctx))


def _placed(
    toolchain: Toolchain, model: Model, options: Options, n_tokens: int, session: Session
) -> Options:
    """Return options for a model on GPUs that may not hold all of it."""
    compute = options.compute
    if not _on_gpu(options, toolchain):
        return options
    how = _on_devices(toolchain, model, options, max(1, n_tokens // compute.n_ctx))
    if not how.copied_bytes:
        return options
    for line in how.lines():
        session.progress.say(line)
    if compute.n_batch >= compute.n_ctx:
        compute = replace(compute, n_batch=how.n_at_once * compute.n_ctx)
    return replace(options, compute=replace(compute, **how.placement._asdict()))


def _on_devices(
    toolchain: Toolchain, model: Model, options: Options, n_windows: int
) -> devices.DevicePlan:
    tensors = expected.of(model)
    work = devices.Work(
        n_windows,
        passes.sums_bytes(tensors, _settings(tensors, model, options)),
        options.memory_bytes or int(MEMORY_SHARE * free_memory_bytes()),
        options.fit_target_mib,
        options.may_grow,
    )
    return devices.plan(toolchain, model, tensors, options.compute, work)


def _on_gpu(options: Options, toolchain: Toolchain) -> bool:
    return toolchain.backend in ON_GPU and options.compute.gpu_layers != 0


def _on_cpu(options: Options, toolchain: Toolchain) -> bool:
    return toolchain.backend == "cpu" or options.compute.gpu_layers == 0


def estimate(
    toolchain: Toolchain, model: Model, options: Options, n_windows: int, session: Session
) -> passes.Estimate | devices.DeviceEstimate:
    """Return how a model is read and how long it takes; measured in seconds.

    Raises UsageError: the memory that was given is not enough for a window.
    """
    if not _on_gpu(options, toolchain):
        return _estimate_in_memory(toolchain, model, options, n_windows, session)
    how, tensors = _on_devices(toolchain, model, options, n_windows), expected.of(model)
    rate = _work_per_s(toolchain, tensors, options, session)
    return devices.DeviceEstimate(how, _work(model, tensors, options, n_windows) / rate)


def _estimate_in_memory(
    toolchain: Toolchain, model: Model, options: Options, n_windows: int, session: Session
) -> passes.Estimate:
    tensors, compute = expected.of(model), options.compute
    memory = options.memory_bytes or int(MEMORY_SHARE * free_memory_bytes())
    settings = _settings(tensors, model, options)
    need = passes.need_of(toolchain, model, tensors, settings, compute)
    plan = passes.plan(model.facts.size_bytes, need, n_windows, memory)
    if options.memory_bytes and plan.used_bytes > memory:
        what = f"{size(memory)} of memory are too little: a window of {compute.n_ctx} tokens needs"
        fix = f"--memory {-(-plan.used_bytes >> 20)}MiB, or a smaller context (--ctx)"
        raise UsageError(f"{what} {size(plan.used_bytes)}", where=model.path, fix=fix)
    work = _work(model, tensors, options, n_windows)
    rate = _work_per_s(toolchain, tensors, options, session)
    return passes.Estimate(plan, work, rate, speed.disk(model.path))


def _work(model: Model, tensors: ModelTensors, options: Options, n_windows: int) -> float:
    """Return the products of a weight and a token."""
    header, arch = read_header(model.path), model.facts.architecture
    used = header.integer(f"{arch}.expert_used_count") / max(1, model.facts.n_experts)
    return n_windows * options.compute.n_ctx * speed.active_weights(tensors, used)


def _work_per_s(
    toolchain: Toolchain, tensors: ModelTensors, options: Options, session: Session
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path, shape = Path(folder) / "probe.gguf", speed.PROBE
        speed.write_probe(path, tensors)
        probe = Model("probe", path, (path,), "", resolve.facts((path,)), "probe")
        compute = replace(options.compute, n_ctx=shape.window, n_batch=shape.window)
        few = replace(options, compute=compute, full="", process_output=False)
        tokens = np.full((3, shape.window), 3, np.int32)
        return shape.n_weights * tokens_per_second(toolchain, probe, tokens, few, session)


def tokens_per_second(
    toolchain: Toolchain,
    model: Model,
    tokens: NDArray[np.int32],
    options: Options,
    session: Session,
) -> float:
    """Return how fast a model is collected, over all windows but the first, which loads it.

    tokens : (windows, tokens of each).
    """
    options = _placed(toolchain, model, options, tokens.size, session)
    block = collector.BLOCK if options.moments else 0
    settings, run = collector.Settings(options.compute.threads, block), Interruptible()
    with (
        Collector(toolchain, settings, run.flag, session) as sums,
        _Context(toolchain, model, sums, options, run) as context,
    ):
        context.read([tokens[0]])
        began = time.monotonic()
        for window in tokens[1:]:
            context.read([window])
        return tokens[1:].size / (time.monotonic() - began)


def _settings(tensors: ModelTensors, model: Model, options: Options) -> collector.Settings:
    block, full = (collector.BLOCK, options.full) if options.moments else (0, "")
    matrices = tensors.expected
    names = tuple(sorted(n for n in matrices if re.search(full, n))) if full else ()
    if full and not names:
        what = f"--full {full} matches none of this model's {len(matrices)} matrices"
        raise UsageError(what, where=model.path, fix=f"name one, such as {min(matrices)}")
    return collector.Settings(options.compute.threads, block, names, options.process_output)


def _metadata(
    toolchain: Toolchain, model: Model, corpus: CorpusFacts, options: Options
) -> dict[str, str]:
    by_document = {format.WINDOWS: DOCUMENT} if options.windows == DOCUMENT else {}
    return by_document | {
        **format.named(corpus.language),
        format.CORPUS: corpus.sha256,
        **_text(corpus),
        "imatrix_lab.model.sha256": model.sha256,
        "imatrix_lab.toolchain.commit": toolchain.commit,
        "imatrix_lab.toolchain.backend": toolchain.backend,
    }


def _text(corpus: CorpusFacts) -> dict[str, str]:
    texts = {format.TEXTS: corpus.text_sha256} if corpus.text_sha256 else {}
    return {format.LICENCE: corpus.licence, **texts}


def facts(artifact: Artifact) -> ImatrixFacts:
    """Return an imatrix's manifest as a record."""
    return ImatrixFacts(path=artifact.path / FILE, sha256=artifact.sha256(FILE), **artifact.facts)


def _windows(
    tools: Toolchain, model: Model, corpus: CorpusFacts, options: Options, session: Session
) -> Windows:
    n_ctx, special = options.compute.n_ctx, options.parse_special
    if options.windows == STREAM:
        return windows.stream(tools, model, corpus, n_ctx, special)
    return windows.by_document(tools, model, corpus, n_ctx, special, session.progress.say)


def _run(
    read: Windows,
    sums: Collector,
    opened: Callable[[], "_Context"],
    saved: Path,
    task: Task,
    found: Mapping[int, Path] = MappingProxyType({}),
) -> None:
    """Let the model read all windows, from the one where an earlier run was stopped.

    Of shards whose sums were `found` these are added instead.
    """
    n_windows, ends = len(read), [0, *itertools.accumulate(map(len, read))]
    done = _restored(sums, saved)
    task.update(ends[done], "continuing an earlier run" if done else "")
    saved_s, save_took_s = time.monotonic(), 0.0
    with ExitStack() as stack:
        context, report = None, _Report(task)
        while done < n_windows:
            shard = done // SHARD
            if done % SHARD == 0 and shard in found and (n := _restored(sums, found[shard])):
                done += n
                task.update(ends[done])
                continue
            if not context:
                context, report = stack.enter_context(opened()), _Report(task)
            some = read[done : min(done + context.n_windows, (shard + 1) * SHARD)]
            report.at, report.n = ends[done], ends[done + len(some)] - ends[done]
            context.read(some, report)
            if sums.fault:
                what = f"{sums.fault}, in the windows from {done} on"
                fix = "use another model file, text or backend; what was collected before is kept"
                raise BadImatrix(what, where=context.path, fix=fix)
            done += len(some)
            if done == n_windows or done % SHARD == 0:
                sums.end_shard()
            report(1.0)
            since_s = time.monotonic() - saved_s
            if done == n_windows or since_s > max(SAVE_S, save_took_s / SAVE_SHARE):
                began = time.monotonic()
                sums.save(saved, done)
                saved_s = time.monotonic()
                save_took_s = saved_s - began


class _Report:
    """Tells how far a decode is, a share of `n` tokens after `at`, and how fast a file is read."""

    def __init__(self, task: Task):
        self._task, self._began, self._base = task, time.monotonic(), speed.read_bytes()
        self.at = self.n = 0

    def __call__(self, share: float) -> None:
        note, rate = "", 0.0
        if self._base is not None and (now := speed.read_bytes()):
            rate = (now - self._base) / (time.monotonic() - self._began)
        if rate > _READS:
            note = f"{size(rate)}/s read from disk"
        self._task.update(self.at + min(1.0, share) * self.n, note)


def _restored(sums: Collector, saved: Path) -> int:
    """Return how many windows an earlier run has summed; its sums are taken over."""
    if not saved.exists():
        return 0
    try:
        return sums.add(saved)
    except BadImatrix:
        saved.unlink()
        return 0


class _Context(AbstractContextManager["_Context"]):
    """A model that reads windows for a collector; `n_windows` at once."""

    def __init__(
        self, tools: Toolchain, model: Model, sums: Collector, options: Options, run: Interruptible
    ):
        self._llama, self.path, self._run, self._sums = tools.bindings(), model.path, run, sums
        silence(self._llama)
        self._head, compute = options.process_output, options.compute
        self._n_matrices = len(expected.of(model).expected)
        self.n_windows = min(max(1, compute.n_batch // compute.n_ctx), passes.WINDOWS_MAX)
        self._n_piece = len(_pieces(compute.n_ctx, compute.n_batch)[0])
        self._n_tokens = self.n_windows * self._n_piece
        with ExitStack() as stack:
            forget_log()
            self._model = run(native.load_model, self._llama, self.path, compute.placement)
            if not self._model:
                what = f"llama.cpp cannot load this model: {reason()}"
                raise BadModel(what, where=model.path, fix=f"check the file; {_SMALLER}")
            stack.callback(self._llama.llama_model_free, self._model)
            self._context = self._open(compute)
            stack.callback(self._llama.llama_free, self._context)
            self._memory = self._llama.llama_get_memory(self._context)
            if options.windows == DOCUMENT and not self._memory:
                self.n_windows = 1  # tokens see those behind them, and would see what is padded
            self._batch = self._llama.llama_batch_init(self._n_tokens, 0, 1)
            stack.callback(self._llama.llama_batch_free, self._batch)
            whole = self._n_piece == compute.n_ctx
            if whole and not self._head and _on_cpu(options, tools):
                self._release_logits()
            self._stack = stack.pop_all()

    def _open(self, compute: Compute) -> Any:
        llama = self._llama
        both = (llama.llama_model_has_encoder, llama.llama_model_has_decoder)
        if all(has(self._model) for has in both):
            what = "importance matrices of encoder-decoder models cannot be collected"
            raise BadModel(what, where=self.path)
        params = llama.llama_context_default_params()
        params.n_ctx = compute.n_ctx * self.n_windows
        params.n_batch = params.n_ubatch = self._n_tokens
        params.n_seq_max = self.n_windows
        params.kv_unified = False
        params.n_threads = params.n_threads_batch = compute.threads
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        self._sums.attach(params)
        context = llama.llama_init_from_model(self._model, params)
        if not context:
            what = f"there is not enough memory for {self._n_tokens} tokens at once"
            raise ImatrixLabError(what, where=self.path, fix="use a smaller --batch or --ctx")
        return context

    def __exit__(self, *exc: object) -> None:
        self._run.tick = None  # it holds this: in a circle, threads stay until a collection
        self._stack.close()

    def read(self, some: Windows, report: Callable[[float], None] | None = None) -> None:
        """Read windows, each from an empty memory; `report` hears the share that is done."""
        if report:
            self._run.tick = lambda: report(self._sums.n_multiplied / self._n_matrices)
        self._llama.llama_memory_clear(self._memory, True)
        rows, lengths = windows.padded(some), np.array([*map(len, some)])
        pieces = _pieces(rows.shape[1], self._n_piece)
        for piece in pieces:
            inside = np.clip(lengths - piece[0], 0, len(piece))
            self._sums.begin(inside, len(piece), may_end=len(pieces) == 1 and not self._head)
            self._fill(rows[:, piece], piece)
            code = self._run(native.decode, self._llama, self._context, self._batch)
            if code == _ABORTED and not self._sums.ended and not self._sums.fault:
                raise KeyboardInterrupt
            if code not in (0, _ABORTED):
                what = f"llama_decode failed (code {code}): {reason()}"
                raise ImatrixLabError(what, where=self.path, fix=_SMALLER)

    def _release_logits(self) -> None:
        """Give the memory of the logits back: llama.cpp fills it with zeros, and none is computed.

        The first decode allocates it, 4 bytes x vocabulary a token, and is aborted here.
        """
        llama, shape = self._llama, (self.n_windows, self._n_piece)
        self._sums.begin([self._n_piece] * self.n_windows, self._n_piece, may_end=True)
        self._sums.abort()
        self._fill(np.zeros(shape, np.int32), np.arange(self._n_piece))
        self._run(native.decode, llama, self._context, self._batch)
        n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._sums.release(llama.llama_get_logits(self._context), 4 * int(np.prod(shape)) * n_vocab)

    def _fill(self, tokens: NDArray[np.int32], positions: NDArray[Any]) -> None:
        batch, n, n_windows = self._batch, tokens.size, len(tokens)
        batch.n_tokens = n
        np.ctypeslib.as_array(batch.token, (n,))[:] = tokens.reshape(-1)
        np.ctypeslib.as_array(batch.pos, (n,))[:] = np.tile(positions, n_windows)
        np.ctypeslib.as_array(batch.n_seq_id, (n,))[:] = 1
        np.ctypeslib.as_array(batch.logits, (n,))[:] = 1  # or the last layer's FFN sees one token
        for i, sequence in enumerate(np.repeat(np.arange(n_windows), len(positions))):
            batch.seq_id[i][0] = int(sequence)


def _pieces(n_tokens: int, n_batch: int) -> list[NDArray[Any]]:
    """Return the positions of a window that each decode reads."""
    return np.array_split(np.arange(n_tokens), max(1, -(-n_tokens // n_batch)))
