"""Building and finding llama.cpp: interrupted, twice at once, no compiler, the user's own."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import MissingTool, UsageError
from imatrix_lab.llamacpp import processor, programs, toolchain
from imatrix_lab.llamacpp.build import get_toolchain


def build(root, **env):
    argv = [sys.executable, "-m", "tests.fakes.build_driver", str(root)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(argv, env={**os.environ, **env}, **pipes)


def compiled(root):
    path = root / "compiled"
    return [int(n) for n in path.read_text().split()] if path.exists() else []


def test_a_killed_build_goes_on(tmp_path):
    rng = random.Random(3)
    for _ in range(6):
        process = build(tmp_path)
        time.sleep(rng.uniform(0.3, 1.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = build(tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    done = compiled(tmp_path)
    # a file whose compilation was cut off is compiled again; nothing else is
    assert set(done) == set(range(1, 11)) and len(done) <= 10 + 6
    assert (tmp_path / "cache").exists() and out.strip().endswith("bin")
    assert not list((tmp_path / "cache" / "work").iterdir())


def test_two_builds_at_once_build_once(tmp_path):
    both = [build(tmp_path), build(tmp_path)]
    texts = [p.communicate() for p in both]
    assert [p.returncode for p in both] == [0, 0], texts
    assert sorted(compiled(tmp_path)) == list(range(1, 11))
    assert texts[0][0] == texts[1][0]
    assert any("is being built elsewhere" in err for _, err in texts)


def test_a_failing_build_names_its_log_and_is_kept(tmp_path):
    process = build(tmp_path, IMATRIX_LAB_FAIL_AT="4")
    _, err = process.communicate()
    assert process.returncode != 0 and "4.cpp:1: error: no" in err and "build.log" in err
    process = build(tmp_path)
    process.communicate()
    assert process.returncode == 0 and compiled(tmp_path) == list(range(1, 11))


@pytest.fixture
def manifest(tmp_path):
    """A function: the manifest of the one toolchain that was built."""
    return lambda: json.loads(
        next((tmp_path / "cache" / "toolchain").glob("*/manifest.json")).read_text()
    )


def test_a_build_that_crashes_is_built_again_with_less(tmp_path, manifest):
    process = build(tmp_path, IMATRIX_LAB_CRASH="native")
    _, err = process.communicate()
    assert process.returncode == 0, err
    used = manifest()["facts"]["build"]
    assert used == processor.builds()[1].name
    first, second = (tmp_path / "configured").read_text().splitlines()
    assert "-DGGML_NATIVE=ON" in first and "-DGGML_NATIVE=OFF" in second
    assert err.count("SIGILL") == 1 and f"another build: {used}" in err
    process = build(tmp_path, IMATRIX_LAB_CRASH="native")  # what is built stays
    assert "compiling" not in process.communicate()[1]


def test_a_build_that_cannot_say_its_version_is_built_again_with_less(tmp_path, manifest):
    process = build(tmp_path, IMATRIX_LAB_ILL="1")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert manifest()["facts"]["build"] == processor.builds()[1].name
    assert err.count("llama-imatrix failed (SIGILL") == 1


def test_a_processor_on_which_nothing_works(tmp_path, manifest):
    names = ",".join(b.name for b in processor.builds())
    process = build(tmp_path, IMATRIX_LAB_CRASH=names)
    _, err = process.communicate()
    assert process.returncode != 0 and "LLAMA_CPP_DIR" in err
    process = build(tmp_path)  # another day: all are tried again
    assert process.communicate() and process.returncode == 0
    assert manifest()["facts"]["build"] == "native"
    # CMake goes on in the tree of the last build, and remembers what it was told there
    configured = (tmp_path / "configured").read_text().splitlines()
    assert "-DGGML_NATIVE=OFF" in configured[-2] and "-DGGML_NATIVE=ON" in configured[-1]


def test_builds_leave_out_one_thing_after_another(monkeypatch):
    flags = frozenset({"sse4_2", "avx2", "fma", "avx512f", "avx512_vnni", "amx_tile", "amx_int8"})
    monkeypatch.setattr(processor, "features", lambda: flags)
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    native, no_amx, no_avx512, portable = processor.builds()
    assert native.cmake == ("-DGGML_NATIVE=ON",)
    assert {"-DGGML_NATIVE=OFF", "-DGGML_AVX512=ON", "-DGGML_AMX_INT8=OFF"} <= set(no_amx.cmake)
    assert {"-DGGML_AVX2=ON", "-DGGML_AVX512=OFF", "-DGGML_AMX_TILE=OFF"} <= set(no_avx512.cmake)
    assert {"-DGGML_SSE42=ON", "-DGGML_AVX=OFF", "-DGGML_FMA=OFF"} <= set(portable.cmake)


def test_a_build_that_leaves_something_out_says_so_in_signatures(tools):
    assert "build" not in tools.signature()
    assert replace(tools, build="portable").signature()["build"] == "portable"


def test_no_compiler_is_one_sentence_with_the_commands(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MissingTool, match="no C\\+\\+ compiler") as caught:
        get_toolchain("cpu", Session(Store(tmp_path / "cache"), Silent()))
    for command in ("apt install g++", "dnf install gcc-c++", "xcode-select --install"):
        assert command in str(caught.value)


@pytest.mark.parametrize(("backend", "word"), [("cuda", "nvcc"), ("vulkan", "glslc")])
def test_a_backend_without_its_compiler(monkeypatch, tmp_path, backend, word):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: (name == "c++" and "/c++") or None)
    monkeypatch.delenv("CUDACXX", raising=False)
    with pytest.raises(MissingTool, match=word):
        get_toolchain(backend, Session(Store(tmp_path), Silent()))


def test_vulkan_headers_that_are_too_old_are_told_before_compiling(monkeypatch, tmp_path):
    header = tmp_path / "include" / "vulkan" / "vulkan_core.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define VK_HEADER_VERSION 239\n")
    monkeypatch.setenv("VULKAN_SDK", str(tmp_path))
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: f"/{name}")
    with pytest.raises(MissingTool, match="239") as caught:
        get_toolchain("vulkan", Session(Store(tmp_path / "store"), Silent()))
    assert "VULKAN_SDK" in caught.value.fix


def test_the_backend_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("BACKEND", "vulkan")
    assert toolchain.default_backend() == "vulkan"
    monkeypatch.setenv("BACKEND", "abacus")
    with pytest.raises(UsageError, match="abacus"):
        toolchain.default_backend()


def test_programs_and_bindings_are_one_commit(tools):
    assert tools.commit == programs.COMMIT
    for name in programs.PROGRAMS:
        assert tools.program(name).exists(), name
    module = tools.bindings()
    assert module.__version__ == toolchain.SDIST_VERSION
    loaded = json.loads(
        subprocess.run(
            [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True,
            env={**os.environ, "LLAMA_CPP_LIB_PATH": str(tools.library_dir)},
        ).stdout
    )  # fmt: skip
    assert loaded and all(path.startswith(str(tools.library_dir.resolve())) for path in loaded)


LOADED = """
import json, llama_cpp, psutil
maps = psutil.Process().memory_maps()
print(json.dumps([m.path for m in maps if "libllama." in m.path or "libggml" in m.path]))
"""


def test_the_users_own_llama_cpp(tools, tmp_path, monkeypatch):
    own = tmp_path / "build" / "bin"
    own.mkdir(parents=True)
    for name in ("llama-imatrix", "llama-quantize", "llama-perplexity"):
        (own / name).write_text(
            "#!/bin/sh\necho 'version: 9999 (abcdef0123)'\necho 'built with x'\n"
        )
        (own / name).chmod(0o755)
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    found = toolchain.find(Store(), "cpu")
    assert found.commit == "abcdef0123" and found.bin_dir == own
    assert found.library_dir.parent.name == tools.library_dir.parent.name
    assert found.signature()["commit"] == "abcdef0123"
    lesser = replace(tools, build="without AVX-512")  # its bindings compute too
    monkeypatch.setattr(toolchain, "Toolchain", lambda **_: lesser)
    assert toolchain.find(Store(), "cpu").signature()["build"] == "without AVX-512"
    monkeypatch.undo()
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    (own / "llama-imatrix").write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(MissingTool) as caught:
        toolchain.find(Store(), "cpu")
    assert caught.value.where == str(own / "llama-imatrix")
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path / "nothing"))
    with pytest.raises(MissingTool) as caught:
        toolchain.find(Store(), "cpu")
    assert caught.value.where == str(tmp_path / "nothing")
