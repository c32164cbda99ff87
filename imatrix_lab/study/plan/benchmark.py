"""How fast this machine is: short runs of what a study does, remembered in the store.

With all cores, until llama.cpp, the model or the number of cores changes.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from imatrix_lab.core import process
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import controls
from imatrix_lab.imatrix import format, quant_error
from imatrix_lab.llamacpp import compute as machine
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.toolchain import cores
from imatrix_lab.models import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.quantize import run
from imatrix_lab.score import kernel, text
from imatrix_lab.score.engine import Engine, Interruptible, Settings
from imatrix_lab.score.job import Job
from imatrix_lab.score.text import Text
from imatrix_lab.score.windows import Protocol
from imatrix_lab.study.context import Shared
from imatrix_lab.types import Document, ImatrixFacts, Model

WINDOW, WINDOWS = 512, 3
"""The first window of an imatrix run has the start of the program in it, and is not timed."""
PROBE_CHANNELS, PROBE_FORWARD = 768, 3072
QUANT = "quant.gguf"
_SEED = 1


@dataclass(frozen=True)
class Rate:
    """Units a second, and what that was measured on, in words."""

    per_second: float
    unit: str
    stands_on: str
    was_busy: bool


class Rates:
    """The rates of a study's models and types, each measured when it is first asked for.

    What was measured while the machine was busy is measured again once it is not.
    """

    def __init__(self, shared: Shared, progress: Progress):
        self._shared, self._progress = shared, progress
        self._busy = os.getloadavg()[0] > cores() / 2  # before we are what it is busy with

    def imatrix(self, model: Model) -> Rate:
        """Return tokens a second of llama-imatrix."""
        said = f"llama-imatrix on {WINDOWS - 1} windows of {WINDOW} tokens"
        return self._rate("imatrix", model, partial(_imatrix, self._shared, model), "tokens", said)

    def scoring(self, model: Model) -> Rate:
        """Return tokens a second of one model that is scored, its divergence included."""
        measure = partial(_scoring, self._shared, model, self._progress)
        return self._rate("score", model, measure, "tokens", "the original on one window")

    def quantizing(self, kind: str) -> Rate:
        """Return weights a second of llama-quantize for a type."""
        measure = partial(_quantizing, self._shared, kind, self._progress)
        said = f"{kind} of a small model of random weights"
        return self._rate("quantize", kind, measure, "weights", said)

    def summing(self) -> Rate:
        """Return weights a second of the sums that predicted losses are made of."""
        kind = self._shared.recipe.types[0]
        measure = partial(_summing, self._shared, kind, self._progress)
        return self._rate("loss", kind, measure, "weights", "a small model of random weights")

    def _rate(
        self, what: str, of: Model | str, measure: Callable[[Path], float], unit: str, said: str
    ) -> Rate:
        """Return what was measured before, or measure it now."""
        store = Store(self._shared.store.root)
        wanted = {
            "what": what, "of": of if isinstance(of, str) else of.sha256, "cores": cores(),
            "gpu_layers": self._shared.compute().gpu_layers,
            "toolchain": self._shared.tools.signature(),
        }  # fmt: skip
        label = f"{what}-{of if isinstance(of, str) else of.label}"
        found = store.find("rate", wanted)
        if found and found.facts["busy"] and not self._busy:
            store.drop("rate", wanted, self._progress)

        def build(out: Path, scratch: Path) -> dict[str, Any]:
            self._progress.say(f"measuring this machine: {label}")
            return {"per_second": measure(scratch), "busy": self._busy}

        facts = store.get("rate", label, wanted, build, self._progress).facts
        return Rate(float(facts["per_second"]), unit, said, facts["busy"])


def _imatrix(shared: Shared, model: Model, scratch: Path) -> float:
    compute = machine.compute_for(model.facts, shared.compute(n_ctx=WINDOW))
    compute = dataclasses.replace(compute, n_batch=WINDOW, n_ubatch=WINDOW)
    words = scratch / "text.txt"
    words.write_text(_random_text(shared, model, WINDOW * (WINDOWS + 1)), encoding="utf-8")
    seen, steps = list[float](), programs.window_steps()

    def note(piece: str) -> None:
        while len(seen) < steps.feed(piece):
            seen.append(time.monotonic())

    argv = programs.imatrix_argv(
        shared.tools.program("llama-imatrix"), model.path, words, Path("out.gguf"), compute,
        windows=(0, WINDOWS),
    )  # fmt: skip
    began = time.monotonic()
    process.run(argv, log=scratch / "llama-imatrix.log", cwd=scratch, on_output=note)
    if len(seen) < WINDOWS or seen[-1] == seen[0]:  # its last lines can be missing
        return WINDOWS * WINDOW / (time.monotonic() - began)
    return (WINDOWS - 1) * WINDOW / (seen[-1] - seen[0])


def _scoring(shared: Shared, model: Model, progress: Progress, scratch: Path) -> float:
    options = shared.compute()
    rows = machine.logit_rows(model.facts.n_vocab, options)
    settings = Settings(cores(), WINDOW, WINDOW, rows, 1, machine.layers_on_gpu(options))
    compiled = kernel.get(
        shared.tools, settings.threads, Session(Store(shared.store.root), progress)
    )
    words = Text("random", (Document("1", _random_text(shared, model, WINDOW), "", ""),))
    protocol = Protocol("document", WINDOW, WINDOW // 4)
    with Vocabulary(shared.tools, model.path) as vocabulary:
        plan = text.plan(words, vocabulary, protocol, 1)
    job = Job(shared.tools, compiled, model, words, plan, protocol, settings)
    with Engine(shared.tools, compiled, model, settings, Interruptible()) as engine:
        engine.begin()
        times = [(time.monotonic(), 0)]
        for step in job.steps(0):
            logits = engine.decode(step)
            compiled.compare(logits, compiled.rows(logits), logits)
            times.append((time.monotonic(), len(step.targets)))
    # the first decode reads the model from the disk
    first = times[1][0] if len(times) > 2 else times[0][0]
    n = sum(n for at, n in times if at > first)
    return n / max(times[-1][0] - first, 1e-3)


def _quantizing(shared: Shared, kind: str, progress: Progress, scratch: Path) -> float:
    source, done = _probe(shared, kind, progress, scratch)
    return source.facts.n_parameters / max(done, 1e-3)


def _summing(shared: Shared, kind: str, progress: Progress, scratch: Path) -> float:
    source, _ = _probe(shared, kind, progress, scratch)
    target = scratch / QUANT
    made = dataclasses.replace(
        source, path=target, shards=(target,), facts=resolve.facts((target,))
    )
    compiled = quant_error.kernel(shared.tools, Session(Store(shared.store.root), progress))
    began = time.monotonic()
    quant_error.write(scratch, compiled, source, made, cores(), progress)
    return source.facts.n_parameters / max(time.monotonic() - began, 1e-3)


def _probe(shared: Shared, kind: str, progress: Progress, scratch: Path) -> tuple[Model, float]:
    """Quantize a small model of random weights; return it, and the seconds that took."""
    path, matrix = scratch / "probe.gguf", scratch / "probe.imatrix.gguf"
    _write_probe(path, matrix)
    source = Model("probe", path, (path,), "", resolve.facts((path,)), "probe")
    found = ImatrixFacts(matrix, "", "probe", 0, 0, 0, 0, 0)
    options = run.Options(programs.Compute(cores()))
    done = run.run(
        shared.tools, source, found, kind, scratch / QUANT, {}, options, scratch / "log.txt",
        progress,
    )  # fmt: skip
    return source, done.seconds


def _random_text(shared: Shared, model: Model, n_tokens: int) -> str:
    with Vocabulary(shared.tools, model.path) as vocabulary:
        found = controls.random_tokens(vocabulary, 2 * n_tokens, _SEED)
        words = "\n".join(document.text for document in found)
        kept = len(words)
        while vocabulary.count(words[:kept]) > 1.2 * n_tokens:
            kept = int(0.8 * kept)
    return words[:kept]


def _write_probe(path: Path, matrix: Path) -> None:
    """Write one layer of a Llama with random weights, F16, and an importance matrix for it."""
    rng, n, wide = np.random.default_rng(_SEED), PROBE_CHANNELS, PROBE_FORWARD
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(n)
    writer.add_block_count(1)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    shapes = {"token_embd": (256, n), "output": (256, n)}
    shapes |= {f"blk.0.attn_{part}": (n, n) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (wide, n), "blk.0.ffn_up": (wide, n), "blk.0.ffn_down": (n, wide)}
    entries = {}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.05, shape).astype(np.float16))
        energy = rng.uniform(0.1, 1.0, (1, shape[1])).astype(np.float32)
        entries[f"{name}.weight"] = format.Entry(energy, np.ones(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    format.write(matrix, format.Imatrix(entries, ("random",), 1, WINDOW))
