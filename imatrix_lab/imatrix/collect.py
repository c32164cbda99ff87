"""An importance matrix from a model and a text, by llama-imatrix, in segments.

llama-imatrix's own snapshots cannot be resumed exactly: they are written in the middle of a
decode, when the first tensors have counted the window and the rest have not. So the text is
run in segments, each a whole llama-imatrix process that continues from the file of the one
before (``--in-file``, ``--chunk``). Sums start from the stored float32 and grow in the same
order, so on CPU the result is bit for bit that of one long run, however often it was killed.
"""

import contextlib
import os
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imatrix_lab.core import process
from imatrix_lab.core.files import need_room
from imatrix_lab.core.progress import Task
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.errors import BadImatrix, BadText, ToolFailed
from imatrix_lab.imatrix import expected, format, validate
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models.resolve import say_warnings
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model

FILE, LOG = "imatrix.gguf", "llama-imatrix.log"
SEGMENT_WINDOWS = 16
START_SHARE = 0.05
"""Segments are long enough that starting the program takes at most this share of the time."""
TAIL_WINDOWS = 3  # llama-imatrix refuses to start a run with fewer windows than this left


@dataclass(frozen=True)
class Options:
    """How llama-imatrix runs, and what it collects."""

    compute: Compute
    parse_special: bool = False
    process_output: bool = False


def inputs(
    model: Model, corpus: CorpusFacts, options: Options, toolchain: Toolchain
) -> dict[str, Any]:
    """Return what determines an imatrix; threads do not."""
    sizes = ("n_ctx", "n_batch", "n_ubatch", "gpu_layers")
    return {
        "model_sha256": model.sha256,
        "corpus_sha256": corpus.sha256,
        "n_windows": window_count(corpus, options),
        **{name: getattr(options.compute, name) for name in sizes},
        "parse_special": options.parse_special,
        "process_output": options.process_output,
        "repack": False,
        "toolchain": toolchain.signature(),
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
    """Return how many windows the text has; raises BadText for fewer than two."""
    n_ctx = options.compute.n_ctx
    if corpus.n_tokens < 2 * n_ctx:
        what = f"llama-imatrix needs two windows of {n_ctx} tokens; this text has {corpus.n_tokens}"
        fix = "more text (--tokens), or a smaller context (--ctx)"
        raise BadText(f"{what} tokens", where=corpus.calibration, fix=fix)
    return corpus.n_tokens // n_ctx


def collect(
    toolchain: Toolchain, model: Model, corpus: CorpusFacts, options: Options, session: Session
) -> ImatrixFacts:
    """Return the imatrix of a text, checked; from the store, or collected now.

    Raises BadImatrix, which names the tensors, or ToolFailed; finished segments are kept.
    """

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        n_windows, n_ctx = window_count(corpus, options), options.compute.n_ctx
        n_tokens = n_windows * n_ctx
        with session.progress.task(f"imatrix {corpus.language}", n_tokens, "tokens") as task:
            last = _run_segments(toolchain, model, corpus, options, scratch, task)
        with contextlib.suppress(FileNotFoundError):
            output = (scratch / LOG).read_text(encoding="utf-8", errors="replace")
            say_warnings(programs.warnings(output), model, session)
        raw = format.read(last)
        findings = validate.check(raw, expected.of(model), n_tokens)
        fix = "use another text or backend; to compute it again: rm -r "
        fix += shlex.quote(str(scratch.parent))
        findings.require_sound(last, fix, session.progress)
        metadata = {
            "imatrix_lab.language": corpus.language,
            "imatrix_lab.corpus.sha256": corpus.sha256,
            "imatrix_lab.corpus.licence": corpus.licence,
            "imatrix_lab.model.sha256": model.sha256,
            "imatrix_lab.toolchain.commit": toolchain.commit,
            "imatrix_lab.toolchain.backend": toolchain.backend,
        }
        dataset = f"{corpus.language} {corpus.source}"
        imatrix = format.Imatrix(raw.entries, (dataset,), n_windows, n_ctx)
        format.write(out / FILE, imatrix, metadata)
        return {
            "language": corpus.language,
            "n_tensors": len(raw.entries),
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


def facts(artifact: Artifact) -> ImatrixFacts:
    """Return an imatrix's manifest as a record."""
    return ImatrixFacts(path=artifact.path / FILE, sha256=artifact.sha256(FILE), **artifact.facts)


class _Clock:
    """When a segment's program started and first finished windows, from its output."""

    def __init__(self, task: Task, done: int, n_ctx: int):
        self.task, self.done, self.n_ctx = task, done, n_ctx
        self.steps = programs.Steps(programs.WINDOW)
        self.started = time.monotonic()
        self.first: float | None = None

    def feed(self, piece: str) -> None:
        if self.steps.feed(piece):
            self.first = self.first or time.monotonic()
            self.task.update((self.done + self.steps.last) * self.n_ctx)

    def best_length(self, n_timed: int) -> int:
        """Return the windows of a segment in which starting takes `START_SHARE`; 0 if unknown."""
        if self.first is None:
            return 0
        window_s = (time.monotonic() - self.first) / max(1, n_timed)
        start_s = max(0.0, self.first - self.started - window_s)
        return max(SEGMENT_WINDOWS, int(start_s / START_SHARE / max(window_s, 1e-3)))


def _run_segments(
    tools: Toolchain, model: Model, corpus: CorpusFacts, options: Options, scratch: Path, task: Task
) -> Path:
    compute, n_windows = options.compute, window_count(corpus, options)
    at_once = max(1, compute.n_batch // compute.n_ctx)
    length = -(-SEGMENT_WINDOWS // at_once) * at_once
    done, last = _done(scratch, n_windows)
    task.update(done * compute.n_ctx, "continuing an earlier run" if done else "")
    part = scratch / "part.gguf"
    while done < n_windows:
        end = done + length
        if n_windows - end < max(TAIL_WINDOWS, length // 4):
            end = n_windows
        clock = _Clock(task, done, compute.n_ctx)
        program, resume = tools.program("llama-imatrix"), Path(last.name) if last else None
        special, output = options.parse_special, options.process_output
        what = programs.ImatrixOptions((done, end - done), resume, special, output)
        target = Path(part.name)
        argv = programs.imatrix_argv(program, model.path, corpus.calibration, target, compute, what)
        try:
            process.run(argv, log=scratch / LOG, cwd=scratch, on_output=clock.feed)
        except ToolFailed as error:
            error.fix = error.fix or "read the log: it has llama-imatrix's reason"
            raise
        whole = scratch / f"windows-{end:06d}.gguf"
        _keep(part, whole)
        if last:
            last.unlink()
        if best := clock.best_length(end - done - at_once):
            length = -(-best // at_once) * at_once
        done, last = end, whole
    assert last is not None
    return last


def _keep(part: Path, whole: Path) -> None:
    """Rename a finished segment; llama-imatrix does not report that it could not write."""
    try:
        format.read(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(whole)
    except (BadImatrix, OSError) as error:
        need_room(part, 0, "the importance matrix")
        what = "llama-imatrix did not write a whole file; earlier segments are kept"
        raise BadImatrix(what, where=part, fix="run the same command again") from error


def _done(scratch: Path, n_windows: int) -> tuple[int, Path | None]:
    """Return how many windows an earlier run finished, and its file; remove unusable files."""
    best: tuple[int, Path | None] = (0, None)
    for path in sorted(scratch.glob("windows-*.gguf")):
        done = int(re.sub(r"\D", "", path.stem))
        try:
            whole = bool(format.read(path).entries)
        except BadImatrix:
            whole = False
        if whole and (done == n_windows or done <= n_windows - TAIL_WINDOWS):
            best = (done, path)
        else:
            path.unlink()
    return best
