"""Building llama.cpp on this machine, and trying what was built."""

import os
import re
import shutil
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from imatrix_lab.core import process, pypi
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.paths import pip_install
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.errors import MissingTool, ToolFailed
from imatrix_lab.llamacpp import processor, programs
from imatrix_lab.llamacpp.toolchain import (
    BACKENDS,
    CMAKE,
    LESS_OPTIMIZED,
    SDIST_SHA256,
    SDIST_VERSION,
    TRIAL_VERSION,
    Toolchain,
    chosen,
    cores,
    find_compiler,
    inputs,
)
from imatrix_lab.llamacpp.trial import try_build

_ON_CPU = "BACKEND=cpu for make, or --backend cpu"
_VULKAN_HEADERS = 272
"""The first VK_HEADER_VERSION with VK_EXT_layer_settings, which ggml-vulkan.cpp uses."""
_MEMORY_PER_JOB_BYTES = 1_200 * 2**20


def get_toolchain(backend: str, session: Session, own: bool = True) -> Toolchain:
    """Return the toolchain; build it (minutes) if needed, and try it on this machine.

    With `own`, the programs are those of ``$LLAMA_CPP_DIR`` if that is set. A build that failed is
    continued by the next run.
    """

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        return _build(out, scratch, backend, session)

    label = f"{programs.COMMIT}-{backend}"
    artifact = session.store.own.get("toolchain", label, inputs(backend), build, session.progress)
    tools = chosen(artifact, backend, own)
    if tools.backend == "own":
        _try_own(tools, session)
    return tools


def _try_own(tools: Toolchain, session: Session) -> None:
    """Try the user's own programs, once for each build of them."""

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        try:
            try_build(tools, scratch, session.progress)
        except ToolFailed as error:
            error.fix = "unset LLAMA_CPP_DIR, or build that llama.cpp with -DGGML_NATIVE=OFF"
            raise
        shutil.copyfile(scratch / "trial.log", out / "trial.log")
        return {}

    files = {p.name: sha256_file(p) for p in tools.bin_dir.iterdir() if p.is_file()}
    inputs_of_trial = {"files": files, "cpu": processor.fingerprint(), "trial": TRIAL_VERSION}
    session.store.own.get("trial", tools.commit, inputs_of_trial, build, session.progress)


def _require_compilers(backend: str) -> None:
    find_compiler()
    if backend == "cuda" and not (shutil.which("nvcc") or os.environ.get("CUDACXX")):
        fix = "Debian/Ubuntu: sudo apt install nvidia-cuda-toolkit, or add /usr/local/cuda/bin"
        fix += f" to PATH; or {_ON_CPU}"
        raise MissingTool("BACKEND=cuda needs nvcc, the CUDA compiler", fix=fix)
    if backend == "vulkan":
        fix = f"Debian/Ubuntu: sudo apt install glslc libvulkan-dev spirv-headers; or {_ON_CPU}"
        if not shutil.which("glslc"):
            raise MissingTool("BACKEND=vulkan needs glslc", fix=fix)
        if (version := _vulkan_headers()) < _VULKAN_HEADERS:
            fix += "; where they are too old (Debian 12): Vulkan's SDK, with VULKAN_SDK=its folder"
            found = f"these are {version}" if version else "there are none"
            what = f"BACKEND=vulkan needs Vulkan's headers, {_VULKAN_HEADERS} or newer: {found}"
            raise MissingTool(what, fix=fix)
    if backend == "blas" and not _has_openblas():
        fix = f"Debian/Ubuntu: sudo apt install libopenblas-dev pkg-config; or {_ON_CPU}"
        raise MissingTool("BACKEND=blas needs OpenBLAS and pkg-config", fix=fix)
    if backend == "metal" and sys.platform != "darwin":
        raise MissingTool("BACKEND=metal is for macOS", fix=_ON_CPU)


def _vulkan_headers() -> int:
    """Return the version of Vulkan's headers where CMake looks for them, or 0."""
    for folder in (os.environ.get("VULKAN_SDK", ""), "/usr/local", "/usr", "/opt/homebrew"):
        header = Path(folder, "include", "vulkan", "vulkan_core.h")
        if folder and header.exists():
            match = re.search(r"define VK_HEADER_VERSION (\d+)", header.read_text("utf-8"))
            return int(match[1]) if match else 0
    return 0


def _has_openblas() -> bool:
    argv = ["pkg-config", "--exists", "openblas"]
    return bool(shutil.which(argv[0])) and process.run(argv, check=False).returncode == 0


def _script(name: str) -> str:
    """Return a program that a wheel installed beside this Python, or the system's."""
    path = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    if not path:
        raise MissingTool(f"{name} is not installed", fix=pip_install(name))
    return path


def _build(out: Path, scratch: Path, backend: str, session: Session) -> Mapping[str, Any]:
    """Compile, and try what was compiled; what dies is compiled again with fewer features."""
    _require_compilers(backend)
    log, progress = scratch.parent / "build.log", session.progress
    progress.say(f"building llama.cpp {programs.COMMIT} for {backend}, once; log: {log}")
    source = _unpacked(scratch, session)
    convert = out / "convert"
    shutil.copytree(source / "conversion", convert / "conversion")
    shutil.copytree(source / "gguf-py" / "gguf", convert / "gguf-py" / "gguf")
    shutil.copyfile(source / "convert_hf_to_gguf.py", convert / "convert_hf_to_gguf.py")
    shutil.copyfile(source / "LICENSE", out / "LICENSE")
    crashed = scratch / "crashed"  # builds that were tried before we were stopped
    builds = processor.builds()
    for build, lesser in zip(builds, [*builds[1:], None], strict=True):
        if (crashed / build.name).exists():
            continue
        _compile(source, scratch, out, (*CMAKE, *BACKENDS[backend], *build.cmake), progress)
        try:
            tools = _compiled(out, backend, build.name)
            try_build(tools, scratch, progress)
        except ToolFailed as error:
            if not error.crashed:
                raise
            if lesser is None:
                shutil.rmtree(crashed, ignore_errors=True)
                error.fix = "LLAMA_CPP_DIR=FOLDER, a llama.cpp that works on this machine"
                raise
            (crashed / build.name).mkdir(parents=True)
            progress.say(f"{error.what}; trying another build: {lesser.name}")
        else:
            return {n: getattr(tools, n) for n in ("commit", "compiler", "backend", "build")}
    raise AssertionError


def _compile(
    source: Path, scratch: Path, out: Path, definitions: tuple[str, ...], progress: Progress
) -> None:
    """Configure and compile; put programs and libraries into ``out/bin``."""
    log, tree, ninja = scratch.parent / "build.log", scratch / "build", _script("ninja")
    rpath = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
    (scratch / "less.cmake").write_text(LESS_OPTIMIZED)
    configure = [_script("cmake"), "-S", str(source), "-B", str(tree), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_INSTALL_RPATH={rpath}"]
    configure += [f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={scratch / 'less.cmake'}", *definitions]
    steps = programs.Steps(programs.NINJA)
    try:
        process.run(configure, log=log)
        with progress.task("compiling llama.cpp", 1.0, "") as task:

            def show(piece: str) -> None:
                if steps.feed(piece):
                    task.update(steps.last / steps.total, f"{steps.last}/{steps.total} files")

            by_memory = psutil.virtual_memory().available // _MEMORY_PER_JOB_BYTES
            jobs = str(max(1, min(cores(), by_memory)))
            argv = [ninja, "-C", str(tree), "-j", jobs, *programs.PROGRAMS]
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


def _unpacked(scratch: Path, session: Session) -> Path:
    """Return llama.cpp's source tree, unpacked if needed."""
    source = scratch / "llama.cpp"
    if source.exists():
        return source
    name = "llama-cpp-python"
    sdist = pypi.stored(name, SDIST_VERSION, SDIST_SHA256, session, source=True)
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
