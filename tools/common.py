"""What several benchmarks share."""

import itertools
import resource
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core import process
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.llamacpp.toolchain import Toolchain, cores


def quantize(
    tools: Toolchain, model: Path, quant_type: str, target: Path, imatrix: Path | None = None
) -> Path:
    """Run llama-quantize alone, without checks, on all cores; return the target."""
    options = programs.QuantizeOptions(cores(), str(imatrix) if imatrix else None)
    program = tools.program("llama-quantize")
    process.run(programs.quantize_argv(program, model, target, quant_type, options))
    return target


def imatrix_argv(
    program: Path,
    model: Path,
    text: Path,
    out: Path,
    compute: Compute,
    n_windows: int,
    attention: str = "off",
) -> list[str]:
    """Return a llama-imatrix command for the first windows of a text.

    It is what collecting is compared with. Without flash attention it computes as we do; its
    snapshots are not written.
    """
    argv = [str(program), "-m", str(model), "-f", str(text), "-o", str(out), *compute.argv()]
    return [*argv, "-fa", attention, "--chunks", str(n_windows), "-ofreq", str(10**9)]


def diagonal_blocks(matrix: NDArray[Any], width: int) -> NDArray[Any]:
    """Return the square blocks on a matrix's diagonal, the last one filled up with zeros."""
    blocks = np.zeros((-(-len(matrix) // width), width, width), matrix.dtype)
    for i, at in enumerate(range(0, len(matrix), width)):
        block = matrix[at : at + width, at : at + width]
        blocks[i, : len(block), : len(block)] = block
    return blocks


def peak_bytes() -> int:
    """Return the most memory that this process has used."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def children_cpu_s() -> float:
    """Return the processor time of programs that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def multiple_choice_bytes(tasks: Sequence[tuple[str, Sequence[str], int]]) -> bytes:
    """Return (question, answers, right one) as ``llama-perplexity --multiple-choice`` reads them.

    The program puts a blank between question and answer. Source: ``multiple_choice_task`` in
    llama.cpp's tools/perplexity: a count, each task's place, the tasks; numbers of 32 bits.
    """

    def string(text: str) -> bytes:
        raw = text.encode()
        return struct.pack("<I", len(raw)) + raw

    bodies = []
    for question, answers, right in tasks:
        labels = struct.pack(f"<{len(answers)}i", *(int(i == right) for i in range(len(answers))))
        first = struct.pack("<I", len(answers)) + b"".join(map(string, answers)) + labels
        bodies.append(string(question) + first + struct.pack("<I", 0))
    places = itertools.accumulate(map(len, bodies[:-1]), initial=4 + 4 * len(bodies))
    return struct.pack(f"<{1 + len(bodies)}I", len(bodies), *places) + b"".join(bodies)
