"""A llama-fit-params of a machine with two GPUs, which cannot be had here: the same output.

Models are 40 layers of 1,000 MiB (500 MiB if ``small`` is in the name) and an output layer as
large; a decode needs 0.5 MiB a token on each device besides, and 44 MiB.
"""

import itertools
import sys

FREE_MIB = 24_000, 12_000
LAYERS = 41
LOG = "0.00.007.571 I llama_fit_params: printing fitted CLI arguments to stdout..."


def rest(n_batch: int) -> int:
    """Return MiB that a decode needs on each device."""
    return 44 + n_batch // 2


def main(argv: list[str]) -> str:
    """Return what is printed."""
    if "--list-devices" in argv:
        lines = [
            f"  CUDA{i}: NVIDIA X (24576 MiB, {free} MiB free)" for i, free in enumerate(FREE_MIB)
        ]
        return "\n".join(["Available devices:", *lines])
    values = dict(itertools.pairwise(argv))
    layer_mib = 500 if "small" in values["-m"] else 1000
    rest_mib = rest(int(values["-ub"]))
    if "-fitp" in values:
        split = [float(x) for x in values.get("-ts", "2,1").split(",")]
        n = int(values.get("-ngl", LAYERS))
        on = [round(n * share / sum(split)) for share in split]
        used = [f"CUDA{i} {k * layer_mib} 100 {rest_mib - 100} " for i, k in enumerate(on)]
        return "\n".join([LOG, *used, f"Host {(LAYERS - sum(on)) * layer_mib} 0 20 "])
    margins = [int(x) for x in values["-fitt"].split(",")]
    on = [
        max(0, (free - margin - rest_mib) // layer_mib)
        for free, margin in zip(FREE_MIB, margins, strict=True)
    ]
    part = rf'-ot "blk\.{LAYERS - sum(on)}\.ffn_(gate|up|gate_up|down).*=CPU"'
    return f"{LOG}\n-c {values['-c']} -ngl {sum(on)} -ts {on[0]},{on[1]} {part}"


if __name__ == "__main__":
    print(main(sys.argv[1:]))
