"""What the processor can do, and builds of llama.cpp that use all of it, or less."""

import functools
import hashlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_CMAKE_OPTIONS = {
    "sse4_2": "SSE42", "avx": "AVX", "avx_vnni": "AVX_VNNI", "avx2": "AVX2", "bmi2": "BMI2",
    "fma": "FMA", "f16c": "F16C", "avx512f": "AVX512", "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16", "amx_tile": "AMX_TILE",
    "amx_int8": "AMX_INT8", "amx_bf16": "AMX_BF16",
}  # fmt: skip
"""Words of /proc/cpuinfo -> options of ggml's CMakeLists.txt."""


@dataclass(frozen=True)
class Build:
    """A build's definitions for CMake, named for what it leaves out (``native``: nothing)."""

    name: str
    cmake: tuple[str, ...]


@functools.cache
def features() -> frozenset[str]:
    """Return the processor's features as Linux names them; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def fingerprint() -> str:
    """Return a short hash of the features: llama.cpp is built for just those."""
    if not features():
        return platform.machine()  # macOS: one set of instructions for each type of machine
    return hashlib.sha256(" ".join(sorted(features())).encode()).hexdigest()[:8]


def builds() -> list[Build]:
    """Return the builds to try, from all that the processor has to what every processor has."""
    tried = [Build("native", ("-DGGML_NATIVE=ON",))]  # said, since CMake remembers what it was told
    if any(f.startswith("amx") for f in features()):
        tried.append(_without("without AMX", ("amx",)))
    if "avx512f" in features():
        tried.append(_without("without AVX-512", ("amx", "avx512", "avx_vnni")))
    return [*tried, Build("portable", ("-DGGML_NATIVE=OFF", *_definitions(("sse4_2",))))]


def _without(name: str, prefixes: tuple[str, ...]) -> Build:
    used = [f for f in _CMAKE_OPTIONS if f in features() and not f.startswith(prefixes)]
    return Build(name, ("-DGGML_NATIVE=OFF", *_definitions(used)))


def _definitions(used: Iterable[str]) -> list[str]:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    return [f"-DGGML_{o}={'ON' if f in used else 'OFF'}" for f, o in _CMAKE_OPTIONS.items()]
