"""What several benchmarks share."""

import resource
import sys
from pathlib import Path

from imatrix_lab.core import process
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.toolchain import Toolchain, cores


def quantize(
    tools: Toolchain, model: Path, quant_type: str, target: Path, imatrix: Path | None = None
) -> Path:
    """Run llama-quantize alone, without checks, on all cores; return the target."""
    options = programs.QuantizeOptions(cores(), str(imatrix) if imatrix else None)
    program = tools.program("llama-quantize")
    process.run(programs.quantize_argv(program, model, target, quant_type, options))
    return target


def peak_bytes() -> int:
    """Return the most memory that this process has used."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def children_cpu_s() -> float:
    """Return the processor time of programs that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
