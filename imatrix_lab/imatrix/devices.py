"""Models larger than a GPU: what lies there, and how many windows to read at once.

Weights that stay in main memory are copied to the GPU for each decode. More windows in a decode
mean fewer copies, but their activations and logits take the GPU's memory from the weights: the
number is doubled as long as less is copied in all. Unlike on a CPU it changes last bits, so the
plan is made before anything is looked up, and is part of the fingerprint.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from imatrix_lab.core.format import duration, size
from imatrix_lab.errors import UsageError
from imatrix_lab.imatrix import passes
from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.llamacpp import offload
from imatrix_lab.llamacpp.programs import EVERYWHERE, Compute, Placement
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.types import ComputeOptions, Model

TOKENS_ENOUGH = 8192
"""Of a decode that copies what main memory keeps: at 16 GB/s and 10¹⁴ operations a second, copying
all of a model at 8 bits takes 0.4 of the time that computing takes, at 2048 tokens 1.5."""
_HOST, _EMBEDDING, _MIB = "Host", "token_embd.weight", 1 << 20


@dataclass(frozen=True)
class DevicePlan:
    """Where a model's tensors lie while an imatrix is collected.

    memory_mib : MiB of weights, and of cache and activations, by device; ``Host`` is main memory.
    copied_bytes : weights that each decode copies from main memory to a GPU.
    own_bytes : main memory for all but weights; `memory_bytes` may be used.
    """

    model: Model
    placement: Placement
    memory_mib: Mapping[str, tuple[int, int]]
    copied_bytes: int
    own_bytes: int
    memory_bytes: int
    n_windows: int
    n_at_once: int

    @property
    def n_decodes(self) -> int:
        """How often weights are copied."""
        return -(-self.n_windows // self.n_at_once)

    @property
    def used_bytes(self) -> int:
        """Main memory that is used if all weights there stay in it."""
        return self.own_bytes + self.memory_mib[_HOST][0] * _MIB

    @property
    def n_passes(self) -> int:
        """How often weights of main memory are read from the file again: it cannot keep them."""
        return self.n_decodes if self.used_bytes > self.memory_bytes else 0

    def facts(self) -> dict[str, object]:
        """Return its numbers by name."""
        return {
            **self.placement.signature(),
            "n_layers": self.model.facts.n_layers + 1,
            "device_bytes": {
                name: {"weights": weights * _MIB, "rest": rest * _MIB}
                for name, (weights, rest) in self.memory_mib.items()
                if name != _HOST
            },
            "model_bytes": self.model.facts.size_bytes,
            "memory_bytes": self.memory_bytes,
            "used_bytes": self.used_bytes,
            "n_windows": self.n_windows,
            "n_windows_at_once": self.n_at_once,
            "n_decodes": self.n_decodes,
            "copied_bytes_per_decode": self.copied_bytes,
            "n_passes": self.n_passes,
        }

    def lines(self) -> list[str]:
        """Return in words what lies where, and what is copied."""
        devices = [
            f"{size(weights * _MIB)} of weights and {size(rest * _MIB)} of activations on {name}"
            for name, (weights, rest) in self.memory_mib.items()
            if name != _HOST
        ]
        copied = f"each of {self.n_decodes} decodes copies {size(self.copied_bytes)} there"
        copied = copied if self.copied_bytes else "nothing is copied there again"
        read = "main memory keeps the rest"
        if self.n_passes:
            read = f"the rest is read from the file for each decode, {self.n_passes} times"
        return [
            f"{offload.in_words(self.placement)}: {', '.join(devices)}",
            f"{self.n_at_once} of {self.n_windows} windows are read at once: {copied}",
            f"{size(self.used_bytes)} of main memory, of {size(self.memory_bytes)}: {read}",
        ]


@dataclass(frozen=True)
class DeviceEstimate:
    """A plan, and how long its computing takes, as measured on a model that fits."""

    plan: DevicePlan
    compute_s: float

    def facts(self) -> dict[str, object]:
        """Return its numbers by name."""
        return {**self.plan.facts(), "compute_s": self.compute_s}

    def lines(self) -> list[str]:
        """Return the plan in words, and the time."""
        more = ", and the time to copy" if self.plan.copied_bytes else ""
        time = f"about {duration(self.compute_s)} of computing, as measured now{more}"
        return [*self.plan.lines(), time]


@dataclass(frozen=True)
class Work:
    """What is to be collected: windows and sums; main memory for it, and what GPUs keep free.

    may_grow : more windows may be read at once than `Compute` says, or fewer.
    """

    n_windows: int
    sums_bytes: int
    memory_bytes: int
    fit_target_mib: int
    may_grow: bool


def plan(
    tools: Toolchain, model: Model, tensors: ModelTensors, compute: Compute, work: Work
) -> DevicePlan:
    """Return where tensors lie, and how many windows to read at once."""
    looked_up = tensors.tensors.get(_EMBEDDING)  # in main memory, and never copied
    embedding_bytes = looked_up[1].size_bytes if looked_up else 0
    widest = max((tensors.shape(name)[1] for name in tensors.expected), default=0)
    asked = ComputeOptions(
        tools.backend,
        gpu_layers=compute.gpu_layers,
        override_tensor=compute.override_tensor,
        fit_target_mib=work.fit_target_mib,
    )

    def with_windows(n: int) -> DevicePlan:
        n_tokens = n * compute.n_ctx
        n_batch = n_tokens if compute.n_batch >= compute.n_ctx else compute.n_batch
        layout = offload.Layout(n_tokens, n_batch, n)
        placement = offload.planned(tools, [model.path], layout, asked)
        used = offload.memory_mib(tools, model.path, layout, placement)
        host_mib, rest_mib = used[_HOST]
        own_bytes = passes.OWN_BYTES + work.sums_bytes + rest_mib * _MIB
        own_bytes += 4 * n_batch * (model.facts.n_vocab + widest)
        is_whole = placement == EVERYWHERE
        copied_bytes = 0 if is_whole else max(0, host_mib * _MIB - embedding_bytes)
        return DevicePlan(
            model, placement, used, copied_bytes, own_bytes, work.memory_bytes, work.n_windows, n
        )

    def fitting(n: int) -> DevicePlan:
        try:
            return with_windows(n)
        except UsageError:
            if n == 1 or not work.may_grow:
                raise
            return fitting(n // 2)

    best = fitting(max(1, compute.n_batch // compute.n_ctx))
    enough = passes.WINDOWS_MAX if best.n_passes else TOKENS_ENOUGH // compute.n_ctx
    most = min(work.n_windows, passes.WINDOWS_MAX, enough)
    while work.may_grow and best.copied_bytes and best.n_at_once < most:
        larger = fitting(min(2 * best.n_at_once, most))
        before, after = (p.copied_bytes * p.n_decodes for p in (best, larger))
        if larger.own_bytes > work.memory_bytes or after >= before:
            break
        best = larger
    return best
