"""llama.cpp on this machine: built once from the pinned sdist, or the user's own.

The sdist of llama-cpp-python contains all of llama.cpp, so the programs built here and the
Python bindings are of the same commit. Programs and shared libraries lie in one folder and find
each other by a relative rpath.
"""

import os
import platform
import shutil
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from imatrix_lab.core import process, pypi
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact, Store
from imatrix_lab.errors import MissingTool, ToolFailed, UsageError
from imatrix_lab.llamacpp import processor, programs

SDIST_VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

BACKENDS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("-DGGML_METAL=OFF",),
    "cuda": ("-DGGML_CUDA=ON", "-DGGML_METAL=OFF"),
    "metal": ("-DGGML_METAL=ON", "-DGGML_METAL_EMBED_LIBRARY=ON"),
    "vulkan": ("-DGGML_VULKAN=ON", "-DGGML_METAL=OFF"),
}
TRIAL_VERSION = 1
"""Raise it when builds must be tried anew. 1: each program on a model of every weight type."""
_CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_ALL_WARNINGS=OFF",
    "-DLLAMA_OPENSSL=OFF", "-DGGML_RPC=ON", "-DGGML_CCACHE=OFF", "-DLLAMA_BUILD_NUMBER=0",
    f"-DLLAMA_BUILD_COMMIT={programs.COMMIT}",
)  # fmt: skip
_LESS_OPTIMIZED = "".join(
    f"cmake_language(DEFER CALL target_compile_options {target} PRIVATE -O1)\n"
    for target in ("mtmd", "cpp-httplib")
)
"""llama-server links these, but no number depends on them; mtmd compiles in half the time."""
_MEMORY_PER_JOB_BYTES = 1_200 * 2**20
_REQUIRED = ("llama-imatrix", "llama-quantize", "llama-perplexity")
_COMPILER_FIX = (
    "Debian/Ubuntu: sudo apt install g++   Fedora: sudo dnf install gcc-c++"
    "   macOS: xcode-select --install"
)


@dataclass(frozen=True)
class Toolchain:
    """Programs and libraries of one llama.cpp.

    Attributes
    ----------
    library_dir : shared libraries for the bindings, always of the pinned commit.
    build : ``native``, or what was left out because it does not work on this processor.
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
        """Return what makes two results comparable: commit, backend, compiler and processor."""
        names = ("commit", "backend", "compiler")
        parts = {**{name: getattr(self, name) for name in names}, "cpu": processor.fingerprint()}
        return parts if self.build == "native" else {**parts, "build": self.build}

    def bindings(self) -> Any:
        """Return the module ``llama_cpp``, bound to this toolchain's libraries."""
        process.clean_own_environment()
        os.environ["LLAMA_CPP_LIB_PATH"] = str(self.library_dir)
        try:
            import llama_cpp
        except ImportError as error:
            fix = "make setup, or: CMAKE_ARGS='-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF'"
            fix += f" pip install llama-cpp-python=={SDIST_VERSION}"
            what = f"the llama.cpp bindings are not installed ({error})"
            raise MissingTool(what, fix=fix) from error
        return llama_cpp


def default_backend() -> str:
    """Return ``$BACKEND``, else metal on Apple silicon, else cpu.

    Raises
    ------
    UsageError : ``$BACKEND`` is unknown.
    """
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    backend = os.environ.get("BACKEND") or ("metal" if apple else "cpu")
    if backend not in BACKENDS:
        raise UsageError(f"BACKEND={backend} is not one of {', '.join(BACKENDS)}")
    return backend


def find(store: Store, backend: str) -> Toolchain | None:
    """Return the toolchain, or None if it is not built; see `get`."""
    artifact = store.find("toolchain", _inputs(backend))
    return _toolchain(artifact, backend) if artifact else None


def get(backend: str, session: Session, own: bool = True) -> Toolchain:
    """Return the toolchain, building it (minutes) if needed.

    Parameters
    ----------
    own : use the programs of ``$LLAMA_CPP_DIR`` if that is set.

    Raises
    ------
    MissingTool : no C++ compiler, or none for the backend.
    ToolFailed : the build failed; the next run continues it.
    """

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        return _build(out, scratch, backend, session.progress)

    label = f"{programs.COMMIT}-{backend}"
    artifact = session.store.get("toolchain", label, _inputs(backend), build, session.progress)
    return _toolchain(artifact, backend, own)


def _inputs(backend: str) -> dict[str, Any]:
    return {
        "commit": programs.COMMIT,
        "sdist_sha256": SDIST_SHA256,
        "backend": backend,
        "cmake": [*_CMAKE, *BACKENDS[backend], _LESS_OPTIMIZED],
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": processor.fingerprint(),
        "trial": TRIAL_VERSION,
    }


def _toolchain(artifact: Artifact, backend: str, own: bool = True) -> Toolchain:
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
    root = Path(os.environ["LLAMA_CPP_DIR"]).expanduser().absolute()
    for folder in (root, root / "bin", root / "build" / "bin"):
        program = folder / _REQUIRED[0]
        if all((folder / name).exists() for name in _REQUIRED):
            break
    else:
        fix = "point it at a llama.cpp build folder, or unset LLAMA_CPP_DIR"
        what = f"LLAMA_CPP_DIR does not hold {', '.join(_REQUIRED)}"
        raise MissingTool(what, where=root, fix=fix)
    output = process.run([program, "--version"], check=False, timeout_s=60).tail
    version = programs.version_of(output)
    if version is None:
        what = "the llama.cpp in LLAMA_CPP_DIR prints no version, so results could not be signed"
        fix = "build it from a git checkout, or unset LLAMA_CPP_DIR"
        raise MissingTool(what, where=program, fix=fix)
    return Toolchain(folder, built.library_dir, built.convert_script, version[0], "own", version[1])


def find_compiler() -> str:
    """Return the C++ compiler that CMake will use, or raise `MissingTool`."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    what = "no C++ compiler; llama.cpp is built from source"
    raise MissingTool(what, fix=_COMPILER_FIX)


def _require_compilers(backend: str) -> None:
    find_compiler()
    if backend == "cuda" and not (shutil.which("nvcc") or os.environ.get("CUDACXX")):
        fix = "Debian/Ubuntu: sudo apt install nvidia-cuda-toolkit, or add /usr/local/cuda/bin"
        fix += " to PATH; or BACKEND=cpu"
        raise MissingTool("BACKEND=cuda needs nvcc, the CUDA compiler", fix=fix)
    if backend == "vulkan" and not shutil.which("glslc"):
        fix = "Debian/Ubuntu: sudo apt install glslc libvulkan-dev; or BACKEND=cpu"
        raise MissingTool("BACKEND=vulkan needs glslc and the Vulkan headers", fix=fix)
    if backend == "metal" and sys.platform != "darwin":
        raise MissingTool("BACKEND=metal is for macOS", fix="BACKEND=cpu")


def _script(name: str) -> str:
    """Return a program that a wheel installed beside this Python, or the system's."""
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.exists() else shutil.which(name)
    if not path:
        raise MissingTool(f"{name} is not installed", fix=f"pip install {name}")
    return path


def _build(out: Path, scratch: Path, backend: str, progress: Progress) -> Mapping[str, Any]:
    """Compile, and try what was compiled; what dies is compiled again with fewer features."""
    from imatrix_lab.llamacpp.trial import try_build  # noqa: PLC0415  numpy: -h must not wait

    _require_compilers(backend)
    log = scratch.parent / "build.log"
    progress.say(f"building llama.cpp {programs.COMMIT} for {backend}, once; log: {log}")
    source = _unpacked(scratch)
    convert = out / "convert"
    shutil.copytree(source / "conversion", convert / "conversion")
    shutil.copytree(source / "gguf-py" / "gguf", convert / "gguf-py" / "gguf")
    shutil.copyfile(source / "convert_hf_to_gguf.py", convert / "convert_hf_to_gguf.py")
    shutil.copyfile(source / "LICENSE", out / "LICENSE")
    crashed = scratch / "crashed"  # builds that were tried before we were stopped
    for build in processor.builds():
        if (crashed / build.name).exists():
            continue
        _compile(source, scratch, out, (*_CMAKE, *BACKENDS[backend], *build.cmake), progress)
        tools = _compiled(out, backend, build.name)
        try:
            try_build(tools, scratch, progress)
        except ToolFailed as error:
            if not error.crashed:
                raise
            crash = error
            (crashed / build.name).mkdir(parents=True)
            progress.say(f"{error.what}; trying another build")
        else:
            return {n: getattr(tools, n) for n in ("commit", "compiler", "backend", "build")}
    shutil.rmtree(crashed)
    crash.fix = "LLAMA_CPP_DIR=FOLDER, a llama.cpp that works on this machine"
    raise crash


def _compile(
    source: Path, scratch: Path, out: Path, definitions: tuple[str, ...], progress: Progress
) -> None:
    """Configure and compile; put programs and libraries into ``out/bin``."""
    log, tree, ninja = scratch.parent / "build.log", scratch / "build", _script("ninja")
    rpath = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
    configure = [_script("cmake"), "-S", str(source), "-B", str(tree), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_INSTALL_RPATH={rpath}"]
    (scratch / "less.cmake").write_text(_LESS_OPTIMIZED)
    configure += [f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={scratch / 'less.cmake'}", *definitions]
    steps = programs.ninja_steps()
    try:
        process.run(configure, log=log)
        with progress.task("compiling llama.cpp", 1.0, "") as task:

            def show(piece: str) -> None:
                steps.feed(piece)
                if steps.total:
                    task.update(steps.last / steps.total, f"{steps.last}/{steps.total} files")

            argv = [ninja, "-C", str(tree), "-j", str(_jobs()), *programs.PROGRAMS]
            process.run(argv, log=log, on_output=show)
    except ToolFailed as error:
        error.fix = "read the log; running the same command again continues the build"
        raise
    shutil.rmtree(out / "bin", ignore_errors=True)
    ignore = shutil.ignore_patterns("*.a", "*.metal", "*.h")
    shutil.copytree(tree / "bin", out / "bin", symlinks=True, ignore=ignore)


def _compiled(out: Path, backend: str, build: str) -> Toolchain:
    output = process.run([out / "bin" / "llama-imatrix", "--version"], timeout_s=60).tail
    version = programs.version_of(output)
    if version is None or version[0] != programs.COMMIT:
        raise MissingTool(f"the build calls itself {output.strip()!r}, not {programs.COMMIT}")
    script = out / "convert" / "convert_hf_to_gguf.py"
    return Toolchain(out / "bin", out / "bin", script, version[0], backend, version[1], build)


def _jobs() -> int:
    by_memory = int(psutil.virtual_memory().available // _MEMORY_PER_JOB_BYTES)
    return max(1, min(cores(), by_memory))


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _unpacked(scratch: Path) -> Path:
    """Return llama.cpp's source tree, unpacked if needed."""
    source, folder = scratch / "llama.cpp", scratch / "sdist"
    if source.exists():
        return source
    sdist = pypi.download("llama-cpp-python", SDIST_VERSION, SDIST_SHA256, folder, source=True)
    partial = scratch / "unpacking"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4; the archive's sha256 is pinned
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(partial)
    (vendored,) = partial.glob("*/vendor/llama.cpp")
    (vendored / ".git").unlink(missing_ok=True)  # a dangling pointer that confuses git
    vendored.replace(source)
    shutil.rmtree(partial)
    return source
