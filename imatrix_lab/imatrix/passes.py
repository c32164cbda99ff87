"""Models larger than memory: how many windows to read at once, so that the file is read seldom.

Each decode reads all of a model's file again where memory cannot keep it. More windows in a decode
mean fewer passes, and on a CPU they change no bit of the result. What they cost llama.cpp says
itself: it lays out a decode of a model without weights (`no_alloc`), as llama-fit-params does.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from imatrix_lab.core.format import duration, size
from imatrix_lab.errors import BadModel
from imatrix_lab.imatrix import collector, siblings
from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.imatrix.speed import Disk
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models.tokenizer import forget_log, log_lines, reason, silence
from imatrix_lab.types import Model

WINDOWS_MAX = collector.SHARD
OWN_BYTES = 300 << 20
"""Of this program, its libraries and a vocabulary."""
_BUFFER = re.compile(r"(compute buffer size|_(?:cache|recurrent): size) += +([\d.]+) MiB")
_ROW_BYTES = 2  # of a value of a matrix's input, converted: float16, or fewer bits


@dataclass(frozen=True)
class Need:
    """The memory that collecting takes, in bytes.

    sums : of the collector.
    window : each window of a decode: activations, cache, and inputs as the matrices' type has them.
    logits : each window's logits, zeros that are given back before anything is computed.
    matrix : twice the largest matrix, which stays in the page cache while it is multiplied.
    """

    sums: int
    window: int
    logits: int
    matrix: int

    def at_once(self, memory_bytes: int) -> int:
        """Return how many windows fit, at least 1."""
        free_bytes = memory_bytes - OWN_BYTES
        by_work = (free_bytes - self.sums - self.matrix) // self.window
        return max(1, min(by_work, free_bytes // max(1, self.logits), WINDOWS_MAX))

    def total(self, n_windows: int) -> int:
        """Return the memory for a decode of so many windows."""
        work = self.sums + n_windows * self.window + self.matrix
        return OWN_BYTES + max(work, n_windows * self.logits)


@dataclass(frozen=True)
class Plan:
    """How a model's file is read.

    n_windows : in all.
    n_at_once : windows of a decode.
    n_passes : decodes, if each reads the file again; 0 if memory keeps it.
    """

    model_bytes: int
    memory_bytes: int
    need: Need
    n_windows: int
    n_at_once: int
    n_passes: int

    @property
    def read_bytes(self) -> int:
        """Bytes read from the disk: llama.cpp reads the whole file once to load it."""
        return self.model_bytes * (1 + self.n_passes)

    @property
    def used_bytes(self) -> int:
        """Memory that is used, the file's pages among it where they all stay."""
        used = self.need.total(self.n_at_once)
        return used if self.n_passes else used - self.need.matrix + self.model_bytes


@dataclass(frozen=True)
class Estimate:
    """A plan, and how long it takes.

    work : products of a weight and a token, `work_per_s` of them a second.
    """

    plan: Plan
    work: float
    work_per_s: float
    disk: Disk

    @property
    def compute_s(self) -> float:
        """Seconds of computing."""
        return self.work / self.work_per_s

    @property
    def read_s(self) -> float:
        """Seconds of reading, of which llama.cpp does a part while it computes."""
        return self.plan.read_bytes / self.disk.bytes_per_s

    def facts(self) -> dict[str, float | bool]:
        """Return its numbers by name."""
        p = self.plan
        return {
            "model_bytes": p.model_bytes,
            "memory_bytes": p.memory_bytes,
            "used_bytes": p.used_bytes,
            "n_windows": p.n_windows,
            "n_windows_at_once": p.n_at_once,
            "n_passes": p.n_passes,
            "read_bytes": p.read_bytes,
            "disk_bytes_per_s": self.disk.bytes_per_s,
            "disk_past_memory": self.disk.past_memory,
            "compute_s": self.compute_s,
            "read_s": self.read_s,
        }

    def lines(self) -> list[str]:
        """Return in words what is read, with how much memory, and how long that takes."""
        p = self.plan
        reads = "memory keeps it, and its file is read once"
        if p.n_passes:
            reads = f"its file is read {1 + p.n_passes} times ({size(p.read_bytes)}): to load it,"
            reads += f" and for each {p.n_at_once} of {p.n_windows} windows"
        model = f"the model has {size(p.model_bytes)}, of {size(p.memory_bytes)} of memory"
        how = "" if self.disk.past_memory else ", in part from memory"
        rate = f"{size(self.disk.bytes_per_s)}/s{how}"
        return [
            f"{model} {size(p.used_bytes)} are used: {reads}",
            f"about {duration(self.compute_s + self.read_s)}: {duration(self.compute_s)} of"
            f" computing and {duration(self.read_s)} of reading at {rate}, as measured now",
        ]


def plan(model_bytes: int, need: Need, n_windows: int, memory_bytes: int) -> Plan:
    """Return how to read a file for so many windows with so much memory."""
    kept = Plan(model_bytes, memory_bytes, need, n_windows, 1, 0)
    if kept.used_bytes <= memory_bytes:
        return kept
    shards, rest = divmod(n_windows, WINDOWS_MAX)
    longest = min(n_windows, WINDOWS_MAX)
    per_shard = -(-longest // need.at_once(memory_bytes))
    at_once = -(-longest // per_shard)  # as many passes, with decodes of like size
    n_passes = shards * per_shard + -(-rest // at_once)
    return Plan(model_bytes, memory_bytes, need, n_windows, at_once, n_passes)


def need_of(
    tools: Toolchain, model: Model, tensors: ModelTensors, settings: collector.Settings,
    compute: Compute,
) -> Need:  # fmt: skip
    """Return the memory that collecting takes on a CPU; raises BadModel as loading would."""
    names, n_ctx = tensors.expected, compute.n_ctx
    widest = max((tensors.shape(name)[1] for name in names), default=0)
    sizes = (tensors.tensors[n][1].size_bytes // tensors.shape(n)[0] for n in names)
    return Need(
        sums=sums_bytes(tensors, settings),
        window=_window_bytes(tools, model, n_ctx) + n_ctx * widest * _ROW_BYTES,
        logits=4 * n_ctx * model.facts.n_vocab,
        matrix=2 * max(sizes, default=0),
    )


def sums_bytes(tensors: ModelTensors, settings: collector.Settings) -> int:
    """Return the bytes of sums over each distinct input."""
    inputs: Mapping[object, tuple[int, int, int]] = {
        (name if name in settings.full else siblings.group(name) or name): (
            *tensors.shape(name),
            tensors.shape(name)[1] if name in settings.full else settings.block,
        )
        for name in tensors.expected
    }
    return sum(n * collector.sums_bytes(columns, block) for n, columns, block in inputs.values())


def _window_bytes(tools: Toolchain, model: Model, n_ctx: int) -> int:
    """Return what llama.cpp lays out for a decode of one window, but for the logits."""
    llama = tools.bindings()
    params = llama.llama_model_default_params()
    params.no_alloc, params.load_mode = True, llama.LLAMA_LOAD_MODE_NONE
    params.n_gpu_layers, params.use_extra_bufts = 0, False
    silence(llama)
    forget_log()
    loaded = llama.llama_model_load_from_file(os.fsencode(model.path), params)
    if not loaded:
        raise BadModel(f"llama.cpp cannot load this model: {reason()}", where=model.path)
    settings = llama.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = n_ctx
    settings.n_seq_max = settings.n_outputs_max = 1
    settings.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    with log_lines(llama) as lines:
        context = llama.llama_init_from_model(loaded, settings)
    llama.llama_free(context)
    llama.llama_model_free(loaded)
    sizes = [float(match[2]) for match in map(_BUFFER.search, lines) if match]
    return int(sum(sizes) * 2**20)
