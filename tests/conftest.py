"""What every test gets: user directories of its own, and the real programs on request."""

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from imatrix_lab.core import process, store
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus.packing import within_budget
from imatrix_lab.llamacpp.toolchain import Toolchain, find
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.score import kernel as kernels
from imatrix_lab.score.kernel import Kernel
from imatrix_lab.types import Document
from tests import tiny_model

# A shell that starts us in the background ignores Ctrl-C, and so would all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_ROOT = store.default_root()
"""The user's store, read before any test is moved out of it."""

NO_HUB = "http://127.0.0.1:9"
"""An address at which nothing answers: no test may depend on the network being there."""


GOLDEN = Path(__file__).parent / "golden" / "sentences.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help=f"rewrite {GOLDEN.name}")


@pytest.fixture
def golden(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], None]:
    """A function: the text under this name is the one in the golden file.

    Sentences that readers see stand there and nowhere else: tests assert what they mean.
    """
    module = Path(str(request.node.path)).relative_to(Path(__file__).parent)
    lock = filelock.FileLock(tmp_path_factory.getbasetemp().parent / "golden.lock")

    def check(name: str, text: str) -> None:
        key = f"{module.as_posix()}::{request.node.name}: {name}"
        if not request.config.getoption("--update-golden"):
            assert text == json.loads(GOLDEN.read_text(encoding="utf-8")).get(key)
            return
        with lock:  # there may be other workers
            texts = json.loads(GOLDEN.read_text(encoding="utf-8")) | {key: text}
            new = json.dumps(texts, ensure_ascii=False, indent=1, sort_keys=True)
            GOLDEN.write_text(new + "\n", encoding="utf-8")

    return check


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's home, caches or tokens."""
    for name in ("IMATRIX_LAB_CACHE", "IMATRIX_LAB_DATA", "HOME", "HF_HOME", "XDG_CACHE_HOME"):
        folder = tmp_path / "user" / name.lower()
        folder.mkdir(parents=True)
        monkeypatch.setenv(name, str(folder))
    for name in ("BACKEND", "LLAMA_CPP_DIR", "HF_TOKEN", "IMATRIX_LAB_REMOTE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", NO_HUB)


@pytest.fixture(scope="session")
def tools() -> Toolchain:
    """The real llama.cpp, for tests that run it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LLAMA_CPP_DIR", raising=False)
        found = find(Store(REAL_ROOT), "cpu")
    if found is None:
        pytest.fail("llama.cpp is not built for cpu: run make test, which builds it")
    return found


@pytest.fixture(scope="session")
def link_toolchain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """A function: gives a cache folder the toolchain, as a link to this session's own copy."""
    copy = tmp_path_factory.mktemp("toolchain-copy") / "toolchain"
    if (REAL_ROOT / "toolchain").exists():
        shutil.copytree(REAL_ROOT / "toolchain", copy, symlinks=True)

    def link(cache: Path) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        if copy.exists() and not (cache / "toolchain").exists():
            (cache / "toolchain").symlink_to(copy)

    return link


@pytest.fixture(scope="session")
def link_compiled(
    link_toolchain: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], None]:
    """A function: gives a cache folder the toolchain, and the one place for kernels.

    So a kernel is compiled once in a session, by whoever needs it first.
    """
    kernels = tmp_path_factory.mktemp("kernels")

    def link(cache: Path) -> None:
        link_toolchain(cache)
        if not (cache / "kernel").exists():
            (cache / "kernel").symlink_to(kernels)

    return link


@pytest.fixture(autouse=True)
def toolchain_in_own_cache(
    own_directories: None, tmp_path: Path, link_compiled: Callable[[Path], None]
) -> None:
    """The test's own cache has the toolchain, the session's kernels, and nothing of the user's."""
    link_compiled(tmp_path / "user" / "imatrix_lab_cache")


@pytest.fixture(scope="session")
def subprocess_env(
    link_toolchain: Callable[[Path], None],
) -> Callable[[Path, Toolchain], dict[str, str]]:
    """A function: cache folder -> environment for commands, with the toolchain in that cache."""

    def make(cache: Path, tools: Toolchain) -> dict[str, str]:
        link_toolchain(cache)
        keep = {
            k: v
            for k, v in os.environ.items()
            if k not in {"BACKEND", "LLAMA_CPP_DIR", "IMATRIX_LAB_REMOTE"}
        }
        own = {"IMATRIX_LAB_CACHE": cache, "IMATRIX_LAB_DATA": cache / "data", "HOME": cache}
        own |= {"OMP_NUM_THREADS": "1", "HF_ENDPOINT": NO_HUB}
        return keep | {name: str(value) for name, value in own.items()}

    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, F16."""
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny-f16.gguf")


@pytest.fixture(scope="session")
def store_at(tools: Toolchain, link_compiled: Callable[[Path], None]) -> Callable[[Path], Store]:
    """A function: folder -> a store there, with the toolchain and the session's kernels."""

    def make(folder: Path) -> Store:
        link_compiled(folder)
        return Store(folder)

    return make


@pytest.fixture
def own_store(store_at: Callable[[Path], Store], tmp_path: Path) -> Store:
    """A store of the test's own, with the toolchain and the session's kernels."""
    return store_at(tmp_path / "store")


@pytest.fixture(scope="session")
def own_text(
    tools: Toolchain, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """A function: number of tokens -> a file of made-up words with just as many."""
    folder = tmp_path_factory.mktemp("text")

    def make(n_tokens: int) -> Path:
        rng = random.Random(n_tokens)
        words = [
            "".join(rng.choices("etaonrisldæøå", k=rng.randint(2, 8))) for _ in range(n_tokens)
        ]
        with Vocabulary(tools, tiny) as vocabulary:
            whole = [Document("x", " ".join(words), "x", "CC0-1.0")]
            text, _ = within_budget(whole, n_tokens, vocabulary.count)
            assert vocabulary.count(text) == n_tokens
        path = folder / f"own-{n_tokens}-{len(list(folder.iterdir()))}.txt"
        path.write_bytes(text.encode())
        return path

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB; only root can mount one."""
    disk = tmp_path / "small"
    disk.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no mount program")
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


# -- scoring


@pytest.fixture(scope="session")
def kernel_store(
    store_at: Callable[[Path], Store], tools: Toolchain, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """A store in which the kernel is compiled."""
    store = store_at(tmp_path_factory.mktemp("kernel"))
    kernels.get(tools, 1, Session(store, Silent()))
    return store


@pytest.fixture(scope="session")
def kernel(kernel_store: Store, tools: Toolchain) -> Kernel:
    """The real kernel, on one thread."""
    return kernels.get(tools, 1, Session(kernel_store, Silent()))


@pytest.fixture(scope="session")
def score_store(store_at: Callable[[Path], Store], kernel_store: Store) -> Callable[[Path], Store]:
    """A function: folder -> a store there, also on another disk: the kernel is there already."""
    return store_at


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, F16, some of whose distributions span more than 16 nats."""
    folder = tmp_path_factory.mktemp("reference")
    return tiny_model.write(folder / "tiny-f16.gguf", output_scale=0.25)


@pytest.fixture(scope="session")
def quants(reference: Path, tools: Toolchain) -> dict[str, Path]:
    """Quants of it by type, made by llama-quantize without an imatrix."""
    found = {kind: reference.with_name(f"tiny-{kind}.gguf") for kind in ("Q8_0", "Q4_K_M", "Q2_K")}
    for kind, path in found.items():
        process.run([tools.program("llama-quantize"), reference, path, kind, "1"], timeout_s=120)
    return found


# -- pages


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, Debian's or whichever is installed."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install -e '.[dev]'"
    )
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no chromium: sudo apt install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program)
        yield started
        started.close()
