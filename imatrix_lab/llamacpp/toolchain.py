"""llama.cpp on this machine: built once from the pinned sdist, or the user's own.

The sdist of llama-cpp-python contains all of llama.cpp, so the programs built here and the
Python bindings are of the same commit. Programs and shared libraries lie in one folder and find
each other by a relative rpath.
"""

import functools
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imatrix_lab.core import process
from imatrix_lab.core.paths import expanded, pip_install
from imatrix_lab.core.store import Artifact, Store, require_private
from imatrix_lab.errors import MissingTool, UsageError
from imatrix_lab.llamacpp import processor, programs

SDIST_VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

BACKENDS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("-DGGML_METAL=OFF",),
    "cuda": ("-DGGML_CUDA=ON", "-DGGML_METAL=OFF"),
    "metal": ("-DGGML_METAL=ON", "-DGGML_METAL_EMBED_LIBRARY=ON"),
    "vulkan": ("-DGGML_VULKAN=ON", "-DGGML_METAL=OFF"),
    "blas": ("-DGGML_BLAS=ON", "-DGGML_BLAS_VENDOR=OpenBLAS", "-DGGML_METAL=OFF"),
}
IN_MEMORY = frozenset(("cpu", "blas"))
"""Backends that compute in main memory, without a device of their own."""
ON_GPU = BACKENDS.keys() - IN_MEMORY
TRIAL_VERSION = 1
"""Raise it when builds must be tried anew. 1: each program on a model of every weight type."""
CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_ALL_WARNINGS=OFF",
    "-DLLAMA_OPENSSL=OFF", "-DGGML_RPC=ON", "-DGGML_CCACHE=OFF", "-DLLAMA_BUILD_NUMBER=0",
    f"-DLLAMA_BUILD_COMMIT={programs.COMMIT}",
)  # fmt: skip
LESS_OPTIMIZED = "".join(
    f"cmake_language(DEFER CALL target_compile_options {target} PRIVATE -O1)\n"
    for target in ("mtmd", "cpp-httplib")
)
"""llama-server links these, but no number depends on them; mtmd compiles in half the time."""
_found = re.compile(r"^ +(\S+): (.+) \((\d+) MiB, (\d+) MiB free\)$", re.MULTILINE).finditer
_NO_DEVICE = (
    "install its driver and see that this user may open the device (vulkaninfo, nvidia-smi); or"
    " BACKEND=cpu for make, or --backend cpu. Vulkan on a processor (Mesa's llvmpipe) is only used"
    " with GGML_VK_VISIBLE_DEVICES=0"
)
_REQUIRED = ("llama-imatrix", "llama-quantize", "llama-perplexity")


@dataclass(frozen=True)
class Device:
    """A GPU as llama.cpp names and describes it, with its memory in MiB."""

    name: str
    description: str
    total_mib: int
    free_mib: int


@dataclass(frozen=True)
class Toolchain:
    """Programs of one llama.cpp, and libraries for the bindings, always of the pinned commit.

    `build` is ``native``, or what was left out because it does not work on this processor.
    """

    bin_dir: Path
    library_dir: Path
    convert_script: Path
    commit: str
    backend: str
    compiler: str
    build: str = "native"

    def program(self, name: str) -> Path:
        """Return the path of a program."""
        return self.bin_dir / (name + (".exe" if os.name == "nt" else ""))

    def signature(self) -> dict[str, str]:
        """Return what makes two results comparable: commit, backend, compiler, processor, GPUs."""
        parts = {name: getattr(self, name) for name in ("commit", "backend", "compiler")}
        parts["cpu"] = processor.fingerprint()
        if self.backend in ON_GPU:
            parts["devices"] = _descriptions(self)
        return parts if self.build == "native" else {**parts, "build": self.build}

    def devices(self) -> list[Device]:
        """Return the GPUs, with what is free on them now.

        Raises MissingTool: there is none, and llama.cpp would silently compute on the processor.
        """
        program = self.program("llama-fit-params")
        output = process.run([program, "--list-devices"], timeout_s=120).tail
        if not (devices := [Device(m[1], m[2], int(m[3]), int(m[4])) for m in _found(output)]):
            what = f"llama.cpp is built for {self.backend}, and finds no such device"
            raise MissingTool(what, fix=_NO_DEVICE)
        return devices

    def bindings(self) -> Any:
        """Return the module ``llama_cpp``, bound to this toolchain's libraries."""
        process.clean_own_environment()
        os.environ["LLAMA_CPP_LIB_PATH"] = str(self.library_dir)
        try:
            import llama_cpp
        except ImportError as error:
            fix = "make setup, or: CMAKE_ARGS='-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF'"
            fix += " " + pip_install("--no-cache-dir", f"llama-cpp-python=={SDIST_VERSION}")
            what = f"the llama.cpp bindings are not installed ({error})"
            raise MissingTool(what, fix=fix) from error
        return llama_cpp


@functools.cache
def _descriptions(tools: Toolchain) -> str:
    try:
        return ", ".join(device.description for device in tools.devices())
    except MissingTool:  # a login node may plan what others compute
        return "none"


def default_backend() -> str:
    """Return ``$BACKEND``, else metal on Apple silicon, else cpu."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    backend = os.environ.get("BACKEND") or ("metal" if apple else "cpu")
    if backend not in BACKENDS:
        raise UsageError(f"BACKEND={backend} is not one of {', '.join(BACKENDS)}")
    return backend


def find(store: Store, backend: str) -> Toolchain | None:
    """Return the toolchain, or None if it is not built."""
    artifact = store.own.find("toolchain", inputs(backend))
    return chosen(artifact, backend) if artifact else None


def inputs(backend: str) -> dict[str, Any]:
    """Return what determines a build."""
    return {
        "commit": programs.COMMIT,
        "sdist_sha256": SDIST_SHA256,
        "backend": backend,
        "cmake": [*CMAKE, *BACKENDS[backend], LESS_OPTIMIZED],
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": processor.fingerprint(),
        "trial": TRIAL_VERSION,
    }


def chosen(artifact: Artifact, backend: str, own: bool = True) -> Toolchain:
    """Return what was built, with the programs of ``$LLAMA_CPP_DIR`` if `own` and that is set."""
    require_private(artifact)
    built = Toolchain(
        bin_dir=artifact.path / "bin",
        library_dir=artifact.path / "bin",
        convert_script=artifact.path / "convert" / "convert_hf_to_gguf.py",
        commit=artifact.facts["commit"],
        backend=backend,
        compiler=artifact.facts["compiler"],
        build=artifact.facts["build"],
    )
    return _users_own(built) if own and os.environ.get("LLAMA_CPP_DIR") else built


def _users_own(built: Toolchain) -> Toolchain:
    """Return a toolchain with the programs of ``$LLAMA_CPP_DIR`` and the pinned libraries."""
    root = expanded(os.environ["LLAMA_CPP_DIR"]).absolute()
    for folder in (root, root / "bin", root / "build" / "bin"):
        if all((folder / name).exists() for name in _REQUIRED):
            break
    else:
        fix = "point it at a llama.cpp build folder, or unset LLAMA_CPP_DIR"
        what = f"LLAMA_CPP_DIR does not hold {', '.join(_REQUIRED)}"
        raise MissingTool(what, where=root, fix=fix)
    program = folder / _REQUIRED[0]
    output = process.run([program, "--version"], check=False, timeout_s=60).tail
    if (version := programs.version_of(output)) is None:
        what = "the llama.cpp in LLAMA_CPP_DIR prints no version, so results could not be signed"
        fix = "build it from a git checkout, or unset LLAMA_CPP_DIR"
        raise MissingTool(what, where=program, fix=fix)
    return replace(built, bin_dir=folder, commit=version[0], backend="own", compiler=version[1])


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def find_compiler() -> str:
    """Return the C++ compiler that CMake will use, or raise `MissingTool`."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    fix = "Debian/Ubuntu: sudo apt install g++   Fedora: sudo dnf install gcc-c++"
    fix += "   macOS: xcode-select --install"
    raise MissingTool("no C++ compiler; llama.cpp is built from source", fix=fix)
