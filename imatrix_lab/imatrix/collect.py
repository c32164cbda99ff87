"""An importance matrix from a model and a text, by llama-imatrix, in segments.

llama-imatrix's own snapshots cannot be resumed exactly: they are written in the middle of a
decode, when the first tensors have counted the window and the rest have not. So the text is
run in segments, each a whole llama-imatrix process that continues from the file of the one
before (``--in-file``, ``--chunk``). Sums start from the stored float32 and grow in the same
order, so on CPU the result is bit for bit that of one long run, however often it was killed.
"""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model

FILE = "imatrix.gguf"
SEGMENT_WINDOWS = 16
START_SHARE = 0.05
"""Segments are made long enough that starting the program takes at most this share."""
TAIL_WINDOWS = 3
"""llama-imatrix refuses to start a run with fewer windows than this left."""


@dataclass(frozen=True)
class Options:
    """What to collect."""

    compute: Compute
    parse_special: bool = False
    process_output: bool = False


def inputs(
    model: Model, corpus: CorpusFacts, options: Options, toolchain: Toolchain
) -> dict[str, Any]:
    """Return what determines an imatrix; threads do not."""
    compute = options.compute
    return {
        "model_sha256": model.sha256,
        "corpus_sha256": corpus.sha256,
        "n_windows": window_count(corpus, options),
        "n_ctx": compute.n_ctx,
        "n_batch": compute.n_batch,
        "n_ubatch": compute.n_ubatch,
        "gpu_layers": compute.gpu_layers,
        "parse_special": options.parse_special,
        "process_output": options.process_output,
        "toolchain": toolchain.signature(),
    }


def window_count(corpus: CorpusFacts, options: Options) -> int:
    """Return how many windows the text has.

    Raises
    ------
    BadText : fewer than two.
    """
    there = corpus.n_tokens // options.compute.n_ctx
    if there < 2:
        raise BadText(
            f"llama-imatrix needs two windows of {options.compute.n_ctx} tokens;"
            f" this text has {corpus.n_tokens} tokens in all",
            where=corpus.calibration,
            fix="more text (--tokens), or a smaller context (--ctx)",
        )
    return there


def collect(
    toolchain: Toolchain,
    model: Model,
    corpus: CorpusFacts,
    options: Options,
    session: Session,
) -> ImatrixFacts:
    """Return the imatrix of a text, collected if it is not there, and checked.

    Raises
    ------
    BadImatrix : what llama-imatrix made is not fit for use; names the tensors.
    ToolFailed : llama-imatrix failed; what was done is kept.
    """

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        n_windows = window_count(corpus, options)
        n_tokens = n_windows * options.compute.n_ctx
        with session.progress.task(f"imatrix {corpus.language}", n_tokens, "tokens") as task:
            last = _segments(toolchain, model, corpus, options, scratch, task)
        raw = format.read(last)
        findings = validate.check(raw, expected.of(model), n_tokens)
        anew = f"another text or backend; to compute it anew: rm -r {scratch.parent}"
        findings.require_sound(last, anew, session.progress)
        dataset = f"{corpus.language} {corpus.source}"
        clean = format.Imatrix(raw.entries, (dataset,), n_windows, options.compute.n_ctx)
        format.write(
            out / FILE,
            clean,
            {
                "imatrix_lab.language": corpus.language,
                "imatrix_lab.corpus.sha256": corpus.sha256,
                "imatrix_lab.corpus.licence": corpus.licence,
                "imatrix_lab.model.sha256": model.sha256,
                "imatrix_lab.toolchain.commit": toolchain.commit,
                "imatrix_lab.toolchain.backend": toolchain.backend,
            },
        )
        return {
            "language": corpus.language,
            "n_tensors": len(raw.entries),
            "n_tokens": n_tokens,
            "n_chunks": n_windows,
            "n_ctx": options.compute.n_ctx,
            "unhit_experts": findings.n_without_tokens,
        }

    asked = inputs(model, corpus, options, toolchain)
    return facts(
        session.store.get(
            "imatrix", f"{model.label}-{corpus.language}", asked, make, session.progress
        )
    )


def facts(artifact: Artifact) -> ImatrixFacts:
    """Return what an imatrix's manifest says."""
    return ImatrixFacts(path=artifact.path / FILE, sha256=artifact.sha256(FILE), **artifact.facts)


def _segments(
    toolchain: Toolchain,
    model: Model,
    corpus: CorpusFacts,
    options: Options,
    scratch: Path,
    task: Task,
) -> Path:
    """Run the windows that are not done yet; return the file with all of them."""
    compute = options.compute
    n_windows = window_count(corpus, options)
    at_once = max(1, compute.n_batch // compute.n_ctx)
    length = -(-SEGMENT_WINDOWS // at_once) * at_once
    done, last = _done(scratch, n_windows)
    task.update(done * compute.n_ctx, "going on from where the last run stopped" if done else "")
    while done < n_windows:
        end = done + length
        if n_windows - end < max(TAIL_WINDOWS, length // 4):
            end = n_windows
        started = time.monotonic()
        first_at: list[float] = []
        steps = programs.window_steps()

        def show(
            piece: str,
            before: int = done,
            steps: programs.Steps = steps,
            first_at: list[float] = first_at,
        ) -> None:
            if steps.feed(piece):
                first_at.append(time.monotonic())
                task.update((before + steps.last) * compute.n_ctx)

        part = scratch / "part.gguf"
        argv = programs.imatrix_argv(
            toolchain.program("llama-imatrix"), model.path, corpus.calibration, Path(part.name),
            compute,
            programs.ImatrixOptions(
                (done, end - done), Path(last.name) if last else None,
                options.parse_special, options.process_output,
            ),
        )  # fmt: skip
        try:
            process.run(argv, log=scratch / "llama-imatrix.log", cwd=scratch, on_output=show)
        except ToolFailed as error:
            error.fix = "read the log; the same command goes on from the windows that are done"
            raise
        whole = scratch / f"windows-{end:06d}.gguf"
        _keep(part, whole)
        if last:
            last.unlink()
        if first_at:
            window_s = (time.monotonic() - first_at[0]) / max(1, end - done - at_once)
            start_s = max(0.0, first_at[0] - started - window_s)
            wanted = int(start_s / START_SHARE / max(window_s, 1e-3))
            length = -(-max(SEGMENT_WINDOWS, wanted) // at_once) * at_once
        done, last = end, whole
    assert last is not None
    return last


def _keep(part: Path, whole: Path) -> None:
    """Give a finished segment its name; llama-imatrix does not tell when it could not write."""
    try:
        format.read(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(whole)
    except (BadImatrix, OSError) as error:
        need_room(part, 0, "the importance matrix")
        raise BadImatrix(
            "llama-imatrix did not write a whole file; the windows before are kept",
            where=part,
            fix="run the same command again",
        ) from error


def _done(scratch: Path, n_windows: int) -> tuple[int, Path | None]:
    """Return how many windows an earlier run finished, and its file; remove what is unusable."""
    best: tuple[int, Path | None] = (0, None)
    for path in sorted(scratch.glob("windows-*.gguf")):
        done = int(re.sub(r"\D", "", path.stem))
        resumable = done == n_windows or done <= n_windows - TAIL_WINDOWS
        if resumable and _is_whole(path):
            best = (done, path)
        else:
            path.unlink()
    return best


def _is_whole(path: Path) -> bool:
    try:
        return bool(format.read(path).entries)
    except BadImatrix:
        return False
