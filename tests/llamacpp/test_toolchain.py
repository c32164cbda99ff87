"""Building and finding llama.cpp: interrupted, twice at once, no compiler, the user's own."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import MissingTool, UsageError
from imatrix_lab.llamacpp import programs, toolchain


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
    process = build(tmp_path, FAIL_AT="4")
    _, err = process.communicate()
    assert process.returncode != 0 and "4.cpp:1: error: no" in err and "build.log" in err
    process = build(tmp_path)
    process.communicate()
    assert process.returncode == 0 and compiled(tmp_path) == list(range(1, 11))


def test_no_compiler_is_one_sentence_with_the_commands(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MissingTool, match="no C\\+\\+ compiler") as caught:
        toolchain.get("cpu", Session(Store(tmp_path / "cache"), Silent()))
    for command in ("apt install g++", "dnf install gcc-c++", "xcode-select --install"):
        assert command in str(caught.value)


@pytest.mark.parametrize(("backend", "word"), [("cuda", "nvcc"), ("vulkan", "glslc")])
def test_a_backend_without_its_compiler(monkeypatch, tmp_path, backend, word):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: (name == "c++" and "/c++") or None)
    monkeypatch.delenv("CUDACXX", raising=False)
    with pytest.raises(MissingTool, match=word):
        toolchain.get(backend, Session(Store(tmp_path), Silent()))


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
    (own / "llama-imatrix").write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(MissingTool) as caught:
        toolchain.find(Store(), "cpu")
    assert caught.value.where == str(own / "llama-imatrix")
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path / "nothing"))
    with pytest.raises(MissingTool) as caught:
        toolchain.find(Store(), "cpu")
    assert caught.value.where == str(tmp_path / "nothing")
