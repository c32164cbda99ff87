"""The speed of this machine: short runs of what a study does, with all cores; kept in the store."""

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import controls
from imatrix_lab.imatrix import collect, collector, format, quant_error
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.compute import compute_for, logit_rows, placement
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.toolchain import cores
from imatrix_lab.models import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.quantize import feedback, run
from imatrix_lab.score import kernel, text
from imatrix_lab.score.engine import Engine, Settings
from imatrix_lab.score.job import Job
from imatrix_lab.score.windows import Protocol
from imatrix_lab.study.context import Shared
from imatrix_lab.types import Document, ImatrixFacts, Model

WINDOW, WINDOWS = 512, 3
"""The first window of an imatrix run reads the model from the disk, and is not timed."""
PROBE_CHANNELS, PROBE_FORWARD = 768, 3072
QUANT = "quant.gguf"
QUANTIZERS = ("feedback",)
"""Those that take time beside llama-quantize, and are measured."""
_SEED = 1


@dataclass(frozen=True)
class Speed:
    """Units per second, and in words what that was measured on."""

    per_second: float
    unit: str
    stands_on: str
    was_busy: bool


class Benchmark:
    """The speed of this machine with a study's models and types, measured when first needed.

    What was measured while the machine was busy is measured again once it is idle.
    """

    def __init__(self, shared: Shared, progress: Progress):
        self._shared, self._progress = shared, progress
        self._busy = os.getloadavg()[0] > cores() / 2  # before this process makes it busy

    def speed(self, what: str, of: Model | str) -> Speed:
        """Return what was measured before, or measure it now.

        `what` is ``imatrix`` or ``score`` of a model (tokens), ``quantize``, predicted ``loss`` or
        a quantizer beside llama-quantize, of a type (weights).
        """
        measures: dict[str, tuple[Callable[..., float], str, str]] = {
            "imatrix": (_imatrix, "tokens", f"{WINDOWS - 1} windows of {WINDOW}"),
            "score": (_score, "tokens", "the original on one window"),
            "quantize": (_quantize, "weights", f"{of} of a small model of random weights"),
            "loss": (_quant_error, "weights", "a small model of random weights"),
            "feedback": (_feedback, "weights", f"{of} of random weights"),
        }
        measure, unit, words = measures[what]
        store = Store(self._shared.store.root)
        name, key = (of, of) if isinstance(of, str) else (of.label, of.sha256)
        label = f"{what}-{name}"
        inputs = {
            "what": what,
            "of": key,
            "cores": cores(),
            "gpu_layers": self._shared.compute().gpu_layers,
            **({"moments": True} if what == "imatrix" and self._shared.needs_moments else {}),
            "toolchain": self._shared.tools.signature(),
        }
        earlier = store.find("rate", inputs)
        if earlier and earlier.facts["busy"] and not self._busy:
            store.drop("rate", inputs, self._progress)

        def build(out: Path, scratch: Path) -> dict[str, Any]:
            self._progress.say(f"measuring the speed of this machine: {label}")
            per_second = measure(self._shared, of, self._progress, scratch)
            return {"per_second": per_second, "busy": self._busy}

        facts = store.get("rate", label, inputs, build, self._progress).facts
        return Speed(float(facts["per_second"]), unit, words, facts["busy"])


def _imatrix(shared: Shared, model: Model, progress: Progress, scratch: Path) -> float:
    compute = compute_for(model.facts, shared.compute(n_ctx=WINDOW))
    batch = dataclasses.replace(compute, n_batch=WINDOW, n_ubatch=WINDOW)
    options = collect.Options(batch, moments=shared.needs_moments)
    tokens = np.random.default_rng(0).integers(0, model.facts.n_vocab, (WINDOWS, WINDOW))
    session = Session(Store(shared.store.root), progress)
    return collect.tokens_per_second(shared.tools, model, tokens.astype(np.int32), options, session)


def _score(shared: Shared, model: Model, progress: Progress, scratch: Path) -> float:
    options = shared.compute()
    rows = logit_rows(model.facts.n_vocab, options)
    settings = Settings(cores(), WINDOW, WINDOW, rows, 1, *placement(options))
    session = Session(Store(shared.store.root), progress)
    compiled = kernel.get(shared.tools, settings.threads, session)
    words = text.Text("random", (Document("1", _random_text(shared, model, WINDOW), "", ""),))
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


def _quantize(shared: Shared, quant_type: str, progress: Progress, scratch: Path) -> float:
    source, seconds = _probe(shared, quant_type, progress, scratch)
    return source.facts.n_parameters / max(seconds, 1e-3)


def _quant_error(shared: Shared, quant_type: str, progress: Progress, scratch: Path) -> float:
    source, _ = _probe(shared, quant_type, progress, scratch)
    path = scratch / QUANT
    quant = dataclasses.replace(source, path=path, shards=(path,), facts=resolve.facts((path,)))
    compiled = quant_error.kernel(shared.tools, Session(Store(shared.store.root), progress))
    began = time.monotonic()
    quant_error.write(scratch, compiled, source, quant, cores(), progress)
    return source.facts.n_parameters / max(time.monotonic() - began, 1e-3)


def _feedback(shared: Shared, quant_type: str, progress: Progress, scratch: Path) -> float:
    kernel = feedback.Kernel(shared.tools, Session(Store(shared.store.root), progress))
    rows = np.random.default_rng(_SEED).normal(0, 0.05, (PROBE_FORWARD, PROBE_CHANNELS))
    moments = np.eye(collector.BLOCK)[None].repeat(PROBE_CHANNELS // collector.BLOCK, axis=0)
    name = next(t for t in feedback.TYPES if quant_type.startswith(t))
    began, importance = time.monotonic(), np.ones(PROBE_CHANNELS, np.float32)
    kernel.rounded(rows.astype(np.float32), name, feedback.factor(moments, 0.0), importance)
    return cores() * rows.size / max(time.monotonic() - began, 1e-3)  # a strip in each thread


def _probe(
    shared: Shared, quant_type: str, progress: Progress, scratch: Path
) -> tuple[Model, float]:
    """Quantize a small model of random weights; return it, and the seconds that took."""
    path, matrix = scratch / "probe.gguf", scratch / "importance.gguf"
    _write_probe(path, matrix)
    source = Model("probe", path, (path,), "", resolve.facts((path,)), "probe")
    imatrix = ImatrixFacts(matrix, "", "probe", 0, 0, 0, 0, 0)
    spec = run.QuantSpec(source, imatrix, quant_type, run.Options(programs.Compute(cores())))
    out, log = scratch / QUANT, scratch / "log.txt"
    return source, run.run_quantize(shared.tools, spec, out, log, progress).seconds


def _random_text(shared: Shared, model: Model, n_tokens: int) -> str:
    with Vocabulary(shared.tools, model.path) as vocabulary:
        documents = controls.random_tokens(vocabulary, 2 * n_tokens, _SEED)
        words = "\n".join(document.text for document in documents)
        kept = len(words)
        while vocabulary.count(words[:kept]) > 1.2 * n_tokens:
            kept = int(0.8 * kept)
    return words[:kept]


def _write_probe(path: Path, matrix: Path) -> None:
    """Write one layer of a Llama with random weights, F16, and an importance matrix for it."""
    rng, n, wide = np.random.default_rng(_SEED), PROBE_CHANNELS, PROBE_FORWARD
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {"context_length": WINDOW, "embedding_length": n, "feed_forward_length": wide}
    for key, number in {**numbers, "block_count": 1, "head_count": 8}.items():
        getattr(writer, f"add_{key}")(number)
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
