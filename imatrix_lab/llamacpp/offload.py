"""Which tensors lie on GPUs where not all of them fit: llama-fit-params is asked.

It lays out model and decode without weights, and fills the devices with layers from the last on;
of a mixture of experts, with what all tokens need first (common/fit.cpp). What stays in main memory
is copied to a device for each decode of 32 tokens or more (`op_offload`), and multiplied there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imatrix_lab.core import process
from imatrix_lab.errors import ToolFailed, UsageError
from imatrix_lab.llamacpp import compute, programs
from imatrix_lab.llamacpp.programs import EVERYWHERE, Placement
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.types import ComputeOptions

STEP_MIB = 256
"""Room is rounded down to this, so that a plan, which is part of every signature, is the same
tomorrow: free memory differs by a little each time."""
_ROUNDED_MIB = 3  # weights, cache and activations are printed in whole MiB


class Layout(NamedTuple):
    """The tokens of a context and of a decode; sequences with a cache of their own."""

    n_ctx: int
    n_batch: int
    n_sequences: int = 1


def planned(
    tools: Toolchain, models: Sequence[Path], layout: Layout, options: ComputeOptions
) -> Placement:
    """Return one placement for models that are in memory together, the largest first.

    What the user says is taken as it is; for a backend without GPU nothing is asked. Raises
    MissingTool: there is no device. Raises UsageError: not even activations fit.
    """
    chosen = compute.placement(options)
    if not compute.on_gpu(options):
        return chosen
    devices = tools.devices()
    if chosen != EVERYWHERE:
        return chosen
    needs = [memory_mib(tools, path, layout, chosen) for path in models]
    rooms, fits = list[int](), True
    for device in devices:
        weights, rest = zip(*(need.get(device.name, (0, 0)) for need in needs), strict=True)
        room = device.free_mib - options.fit_target_mib
        fits &= sum(weights) + sum(rest) <= room
        # as many layers of each model: the first has its share of the weights
        for_weights = max(0, room - len(models) * rest[0])
        own = rest[0] + for_weights * weights[0] // max(1, sum(weights))
        rooms.append(max(0, own // STEP_MIB * STEP_MIB))
    if fits:
        return chosen
    margins = [max(0, device.free_mib - room) for device, room in zip(devices, rooms, strict=True)]
    placement = _fitted(tools, models[0], layout, ",".join(map(str, margins)))
    used = memory_mib(tools, models[0], layout, placement)
    for device, room in zip(devices, rooms, strict=True):  # which llama-fit-params does not look at
        if (needed := sum(used.get(device.name, (0, 0)))) > room + _ROUNDED_MIB:
            what = (
                f"{models[0].name} needs {needed} MiB on {device.name} for {layout.n_batch} tokens"
            )
            fix = "a smaller --batch or --ctx; or --gpu-layers 0, to compute without the GPU"
            raise UsageError(f"{what} at once, where {room} MiB are free for it", fix=fix)
    return placement


def in_words(placement: Placement) -> str:
    """Return a placement as a sentence for users."""
    if placement.gpu_layers == 0:
        return "no layer fits on the GPU, which is not used"
    layers = "all layers" if placement.gpu_layers is None else f"{placement.gpu_layers} layers"
    partly = placement.override_tensor.count("=")
    return f"{layers} on the GPU" + (f", {partly} of them in part" if partly else "")


def memory_mib(
    tools: Toolchain, model: Path, layout: Layout, placement: Placement
) -> dict[str, tuple[int, int]]:
    """Return MiB of weights, and of cache and activations, by device; main memory is ``Host``."""
    output = _ask(tools, model, layout, "-fitp", "on", *placement.argv())
    return programs.memory_mib(output)


def _fitted(tools: Toolchain, model: Path, layout: Layout, margins_mib: str) -> Placement:
    output = _ask(tools, model, layout, "-fitt", margins_mib)
    if (placement := programs.fitted(output)) is None:
        raise ToolFailed("llama-fit-params found no plan", tail=output)
    return placement


def _ask(tools: Toolchain, model: Path, layout: Layout, *more: str) -> str:
    program = tools.program("llama-fit-params")
    argv = programs.fit_argv(program, model, *layout, *more)
    try:
        return process.run(argv, timeout_s=600).tail
    except ToolFailed as error:
        error.fix = "--gpu-layers N, to place the layers yourself; or --backend cpu"
        raise
