"""An importance matrix of a model on a text, collected in process.

The text is one stream of tokens, cut into windows whose first token becomes BOS where the model
adds one, as llama-imatrix does (tools/imatrix/imatrix.cpp). Attention is computed without flash
attention, which would sum in another order for each batch: so neither threads nor the number of
windows in a decode change a bit on a CPU. Sums are saved between decodes; a run that was killed
goes on from there and ends with the same bytes.
"""

import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.files import need_room
from imatrix_lab.core.format import size
from imatrix_lab.core.progress import Task
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.errors import BadImatrix, BadModel, BadText, ImatrixLabError, UsageError
from imatrix_lab.imatrix import collector, expected, format, moments, passes, validate
from imatrix_lab.imatrix.collector import Collector
from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.llamacpp import native
from imatrix_lab.llamacpp.compute import memory_bytes
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models.tokenizer import Vocabulary, forget_log, reason, silence
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model

FILE = "imatrix.gguf"
SAVED = "sums.bin"
SAVE_S = 30.0
"""Seconds of work that a kill may cost, but for disks so slow that saving takes `SAVE_SHARE`."""
SAVE_SHARE = 0.05
_ABORTED = 2  # of llama_decode
_SMALLER = "if memory is short, use a smaller --batch or --ctx"


@dataclass(frozen=True)
class Options:
    """How the model runs, and what is collected.

    moments : E[x] and blocks of E[x xᵀ] too (see `moments`).
    full : a regular expression; inputs of the matrices that it matches are kept whole.
    """

    compute: Compute
    parse_special: bool = False
    process_output: bool = False
    moments: bool = False
    full: str = ""


def inputs(
    model: Model, corpus: CorpusFacts, options: Options, toolchain: Toolchain
) -> dict[str, Any]:
    """Return what determines an imatrix; threads do not, nor does the batch on a CPU."""
    compute, on_cpu = options.compute, _on_cpu(options, toolchain)
    more = {"moments": collector.BLOCK, "full": options.full} if options.moments else {}
    return {
        "model_sha256": model.sha256,
        "corpus_sha256": corpus.sha256,
        "n_windows": window_count(corpus, options),
        "n_ctx": compute.n_ctx,
        "n_batch": None if on_cpu else compute.n_batch,
        "gpu_layers": compute.gpu_layers,
        "parse_special": options.parse_special,
        "process_output": options.process_output,
        "repack": False,
        "flash_attention": False,
        "toolchain": toolchain.signature(),
        **more,
    }


def identity(model: Model, corpus: CorpusFacts, options: Options) -> dict[str, Any]:
    """Return what an imatrix file of these has in its metadata, whatever built it."""
    return {
        "imatrix_lab.model.sha256": model.sha256,
        "imatrix_lab.language": corpus.language,
        "imatrix_lab.corpus.sha256": corpus.sha256,
        "imatrix.chunk_size": options.compute.n_ctx,
        "imatrix.chunk_count": window_count(corpus, options),
    }


def window_count(corpus: CorpusFacts, options: Options) -> int:
    """Return how many windows the text has; raises BadText if it does not fill one."""
    n_ctx = options.compute.n_ctx
    if corpus.n_tokens < n_ctx:
        what = f"an importance matrix needs a window of {n_ctx} tokens; this text has"
        fix = "more text (--tokens), or a smaller context (--ctx)"
        raise BadText(f"{what} {corpus.n_tokens} tokens", where=corpus.calibration, fix=fix)
    return corpus.n_tokens // n_ctx


def collect(
    toolchain: Toolchain, model: Model, corpus: CorpusFacts, options: Options, session: Session
) -> ImatrixFacts:
    """Return the imatrix of a text, checked; from the store, or collected now.

    Raises BadImatrix, which names the tensors. Sums that were saved are kept.
    """

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        n_windows, n_ctx = window_count(corpus, options), options.compute.n_ctx
        n_tokens = n_windows * n_ctx
        tensors, run = expected.of(model), Interruptible()
        settings = _settings(tensors, model, options)
        running = options
        if _on_cpu(options, toolchain) and options.compute.n_batch == n_ctx:
            running = _with_passes(model, tensors, options, n_windows, session)
        with (
            session.progress.task(f"imatrix {corpus.language}", n_tokens, "tokens") as task,
            Collector(toolchain, settings, run.flag, session) as sums,
        ):
            windows = _windows(toolchain, model, corpus, options)
            context = partial(_Context, toolchain, model, sums, running, run)
            _run(windows, sums, context, scratch / SAVED, task)
            entries = sums.entries()
            findings = validate.check(
                format.Imatrix(entries, (), n_windows, n_ctx), tensors, n_tokens
            )
            fix = "use another text or backend; to compute it again: rm -r "
            fix += shlex.quote(str(scratch.parent))
            findings.require_sound(model.path, fix, session.progress)
            about, more = moments.of(sums) if options.moments else ({}, ())
            imatrix = format.Imatrix(
                entries,
                (f"{corpus.language} {corpus.source}",),
                n_windows,
                n_ctx,
                metadata=_metadata(toolchain, model, corpus) | about,
                more=more,
            )
            if more:
                need_room(out, sum(t.size_bytes() for t in more), "the moments")
            format.write(out / FILE, imatrix)
        (scratch / SAVED).unlink(missing_ok=True)
        return {
            "language": corpus.language,
            "n_tensors": len(entries),
            "n_tokens": n_tokens,
            "n_chunks": n_windows,
            "n_ctx": n_ctx,
            "unhit_experts": findings.n_without_tokens,
        }

    key, label = inputs(model, corpus, options, toolchain), f"{model.label}-{corpus.language}"
    artifact = session.store.get("imatrix", label, key, make, session.progress)
    return facts(_named(artifact, label, corpus, session))


def _named(artifact: Artifact, label: str, corpus: CorpusFacts, session: Session) -> Artifact:
    """Return an imatrix with the names of this corpus: the store knows texts by their content."""
    imatrix, dataset = format.read(artifact.path / FILE), f"{corpus.language} {corpus.source}"
    metadata = {
        "imatrix_lab.language": corpus.language,
        "imatrix_lab.corpus.licence": corpus.licence,
    }
    if imatrix.datasets == (dataset,) and metadata.items() <= imatrix.metadata.items():
        return artifact

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        format.write(out / FILE, replace(imatrix, datasets=(dataset,)), metadata)
        return {**artifact.facts, "language": corpus.language}

    inputs = {"named_sha256": artifact.sha256(FILE), "dataset": dataset, **metadata}
    return session.store.get("imatrix", label, inputs, make, session.progress)


def _on_cpu(options: Options, toolchain: Toolchain) -> bool:
    return toolchain.backend == "cpu" or options.compute.gpu_layers == 0


def _with_passes(
    model: Model, tensors: ModelTensors, options: Options, n_windows: int, session: Session
) -> Options:
    """Return options that read a model larger than memory as seldom as memory allows."""
    compute, memory = options.compute, memory_bytes()
    plan = passes.plan(model, tensors, compute.n_ctx, n_windows, memory)
    if plan is None:
        return options
    session.progress.say(
        f"note: the model has {size(plan.model_bytes)}, memory {size(memory)}: its file is read"
        f" {plan.n_passes} times, for {plan.n_windows} windows at once"
        f" (about {size(plan.work_bytes)} of memory)"
    )
    return replace(options, compute=replace(compute, n_batch=plan.n_windows * compute.n_ctx))


def tokens_per_second(
    toolchain: Toolchain,
    model: Model,
    windows: NDArray[np.int32],
    options: Options,
    session: Session,
) -> float:
    """Return how fast a model is collected, over all windows but the first, which loads it."""
    settings = collector.Settings(options.compute.threads, options.compute.n_ctx)
    run = Interruptible()
    with (
        Collector(toolchain, settings, run.flag, session) as sums,
        _Context(toolchain, model, sums, options, run) as context,
    ):
        context.read(windows[:1])
        began = time.monotonic()
        for window in windows[1:]:
            context.read(window[None])
        return windows[1:].size / (time.monotonic() - began)


def _settings(tensors: ModelTensors, model: Model, options: Options) -> collector.Settings:
    block, full = (collector.BLOCK, options.full) if options.moments else (0, "")
    matrices = tensors.expected
    names = tuple(sorted(n for n in matrices if re.search(full, n))) if full else ()
    if full and not names:
        what = f"--full {full} matches none of this model's {len(matrices)} matrices"
        raise UsageError(what, where=model.path, fix=f"name one, such as {min(matrices)}")
    threads, n_ctx = options.compute.threads, options.compute.n_ctx
    return collector.Settings(threads, n_ctx, block, names, options.process_output)


def _metadata(toolchain: Toolchain, model: Model, corpus: CorpusFacts) -> dict[str, str]:
    return {
        "imatrix_lab.language": corpus.language,
        "imatrix_lab.corpus.sha256": corpus.sha256,
        "imatrix_lab.corpus.licence": corpus.licence,
        "imatrix_lab.model.sha256": model.sha256,
        "imatrix_lab.toolchain.commit": toolchain.commit,
        "imatrix_lab.toolchain.backend": toolchain.backend,
    }


def facts(artifact: Artifact) -> ImatrixFacts:
    """Return an imatrix's manifest as a record."""
    return ImatrixFacts(path=artifact.path / FILE, sha256=artifact.sha256(FILE), **artifact.facts)


def _windows(
    tools: Toolchain, model: Model, corpus: CorpusFacts, options: Options
) -> NDArray[np.int32]:
    """Return the tokens that the model reads, int32 (windows, tokens of a window)."""
    # as llama.cpp's programs read a file: its bytes, but for one newline at the end
    text = corpus.calibration.read_bytes().removesuffix(b"\n").decode()
    n_windows, n_ctx = window_count(corpus, options), options.compute.n_ctx
    with Vocabulary(tools, model.path, options.parse_special) as vocabulary:
        tokens, bos = vocabulary.tokens(text), vocabulary.bos()
    if len(tokens) < n_windows * n_ctx:
        what = f"this text has {len(tokens)} tokens, and {corpus.n_tokens} were counted before"
        raise BadText(what, where=corpus.calibration, fix="build the corpus again")
    windows = np.array(tokens[: n_windows * n_ctx], np.int32).reshape(n_windows, n_ctx)
    if bos is not None:
        windows[:, 0] = bos
    return windows


def _run(
    windows: NDArray[np.int32],
    sums: Collector,
    opened: Callable[[], "_Context"],
    saved: Path,
    task: Task,
) -> None:
    """Let the model read all windows, from the one where an earlier run was stopped."""
    n_windows, n_ctx = windows.shape
    done = _restored(sums, saved)
    task.update(done * n_ctx, "continuing an earlier run" if done else "")
    if done == n_windows:
        return
    saved_s, save_took_s = time.monotonic(), 0.0
    with opened() as context:
        while done < n_windows:
            some = windows[done : done + context.n_windows]
            context.read(some)
            if sums.fault:
                what = f"{sums.fault}, in the windows from {done} on"
                fix = "use another model file, text or backend; what was collected before is kept"
                raise BadImatrix(what, where=context.path, fix=fix)
            done += len(some)
            task.update(done * n_ctx)
            since_s = time.monotonic() - saved_s
            if done == n_windows or since_s > max(SAVE_S, save_took_s / SAVE_SHARE):
                began = time.monotonic()
                sums.save(saved, done)
                saved_s = time.monotonic()
                save_took_s = saved_s - began


def _restored(sums: Collector, saved: Path) -> int:
    """Return how many windows an earlier run has summed; its sums are taken over."""
    if not saved.exists():
        return 0
    try:
        return sums.restore(saved)
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
        self._n_ctx = compute.n_ctx
        self.n_windows = min(max(1, compute.n_batch // compute.n_ctx), passes.WINDOWS_MAX)
        n_pieces = max(1, -(-compute.n_ctx // compute.n_batch))
        self._pieces = np.array_split(np.arange(compute.n_ctx), n_pieces)
        self._n_tokens = self.n_windows * len(self._pieces[0])
        with ExitStack() as stack:
            forget_log()
            self._model = run(native.load_model, self._llama, self.path, compute.gpu_layers)
            if not self._model:
                what = f"llama.cpp cannot load this model: {reason()}"
                raise BadModel(what, where=model.path, fix=f"check the file; {_SMALLER}")
            stack.callback(self._llama.llama_model_free, self._model)
            self._context = self._open(compute)
            stack.callback(self._llama.llama_free, self._context)
            self._batch = self._llama.llama_batch_init(self._n_tokens, 0, 1)
            stack.callback(self._llama.llama_batch_free, self._batch)
            if n_pieces == 1 and not self._head and _on_cpu(options, tools):
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
        self._stack.close()

    def read(self, windows: NDArray[np.int32]) -> None:
        """Read windows, int32 (windows, tokens), each from an empty memory."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        whole = len(self._pieces) == 1
        for tokens, positions, sequences in _decodes(windows, self._pieces):
            self._sums.begin(may_end=whole and not self._head)
            self._fill(tokens, positions, sequences)
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
        llama, n = self._llama, self._n_tokens
        self._sums.begin(may_end=True)
        self._sums.abort()
        self._fill(np.zeros(n), np.arange(n) % self._n_ctx, np.arange(n) // self._n_ctx)
        self._run(native.decode, llama, self._context, self._batch)
        n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._sums.release(llama.llama_get_logits(self._context), 4 * n * n_vocab)

    def _fill(self, tokens: NDArray[Any], positions: NDArray[Any], sequences: NDArray[Any]) -> None:
        batch, n = self._batch, len(tokens)
        batch.n_tokens = n
        np.ctypeslib.as_array(batch.token, (n,))[:] = tokens
        np.ctypeslib.as_array(batch.pos, (n,))[:] = positions
        np.ctypeslib.as_array(batch.n_seq_id, (n,))[:] = 1
        np.ctypeslib.as_array(batch.logits, (n,))[:] = 1  # or the last layer's FFN sees one token
        for i, sequence in enumerate(sequences):
            batch.seq_id[i][0] = int(sequence)


def _decodes(
    windows: NDArray[np.int32], pieces: list[NDArray[Any]]
) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Yield (tokens, positions, sequences) of each decode; one sequence a window."""
    for piece in pieces:
        some = windows[:, piece]
        sequences = np.repeat(np.arange(len(windows)), len(piece))
        yield some.reshape(-1), np.tile(piece, len(windows)), sequences
