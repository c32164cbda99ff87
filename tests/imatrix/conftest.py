"""Importance matrices, real and made up; quants by llama-quantize; the kernel of predicted loss."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imatrix_lab.core import process
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.imatrix import format, quant_error
from imatrix_lab.imatrix.format import Entry, Imatrix
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import read_header
from imatrix_lab.types import Model
from tests import tiny_model

WINDOW = 128


@pytest.fixture(scope="session")
def llama_imatrix(tools):
    """A function: arguments -> a finished run; no model is loaded to convert files."""

    def run(*words):
        argv = [tools.program("llama-imatrix"), "-t", "1", "-c", WINDOW, "-b", WINDOW, *words]
        return subprocess.run([str(w) for w in argv], capture_output=True, text=True, check=True)

    return run


@pytest.fixture(scope="session", name="models")
def _models(tiny, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"dense": tiny, "moe": tiny_model.write(folder / "moe-f16.gguf", experts=8)}


@pytest.fixture(scope="session")
def made(models, llama_imatrix, own_text, tmp_path_factory) -> dict[str, dict[str, Path]]:
    """Model -> text -> GGUF file; text a is longer than b, and b's experts are not all hit."""
    folder = tmp_path_factory.mktemp("made")
    texts = {"a": own_text(8 * WINDOW), "b": own_text(3 * WINDOW), "c": own_text(4 * WINDOW)}
    files: dict[str, dict[str, Path]] = {}
    for model, path in models.items():
        for name, text in texts.items():
            out = folder / f"{model}-{name}.gguf"
            llama_imatrix("-m", path, "-f", text, "-o", out)
            files.setdefault(model, {})[name] = out
    return files


@pytest.fixture(scope="session")
def loss_store(
    store_at: Callable[[Path], Store], tools: Toolchain, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """A store in which the kernel is compiled."""
    store = store_at(tmp_path_factory.mktemp("loss"))
    quant_error.kernel(tools, Session(store, Silent()))
    return store


@pytest.fixture(scope="session")
def loss_kernel(loss_store: Store, tools: Toolchain) -> quant_error.Kernel:
    """The real kernel."""
    return quant_error.kernel(tools, Session(loss_store, Silent()))


@pytest.fixture
def store(own_store: Store, loss_store: Store) -> Store:
    """A store of the test's own, with the toolchain and the kernel in it."""
    return own_store


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mixture of four experts, F16."""
    return tiny_model.write(tmp_path_factory.mktemp("moe") / "moe-f16.gguf", experts=4)


@pytest.fixture(scope="session")
def imatrix_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function: model and name -> a made-up imatrix, its columns far apart in size."""

    def make(model: Path, name: str, *, seed: int = 0, scale: float = 1.0) -> Path:
        rng = np.random.default_rng([seed, *name.encode()])
        entries = {}
        for tensor in read_header(model).tensors:
            if not (tensor.name.startswith("blk.") and resolve.quantizable(tensor)):
                continue
            n_columns, _, *rest = tensor.shape
            n_matrices = rest[0] if rest else 1
            counts = np.full(n_matrices, 512.0)
            if n_matrices > 1:
                counts = rng.integers(100, 900, n_matrices).astype(float)
                counts[rng.integers(n_matrices)] = 0  # an expert that no token reached
            sums = rng.lognormal(0, 2, (n_matrices, n_columns)) * counts[:, None] * scale
            entries[tensor.name] = Entry(sums.astype(np.float32), counts.astype(np.float32))
        path = tmp_path_factory.mktemp("made-up") / f"{name}.imatrix.gguf"
        format.write(path, Imatrix(entries, (name,), 4, 128, name), {})
        return path

    return make


@pytest.fixture(scope="session")
def quantized(
    tools: Toolchain, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path, str, Path | None], Path]:
    """A function: model, type and imatrix -> what llama-quantize makes of them."""
    made: dict[tuple[Path, str, Path | None], Path] = {}

    def make(model: Path, quant_type: str, imatrix: Path | None = None) -> Path:
        if (model, quant_type, imatrix) not in made:
            path = tmp_path_factory.mktemp("quant") / f"{quant_type}.gguf"
            program = tools.program("llama-quantize")
            options = programs.QuantizeOptions(1, str(imatrix) if imatrix else None)
            process.run(programs.quantize_argv(program, model, path, quant_type, options))
            made[model, quant_type, imatrix] = path
        return made[model, quant_type, imatrix]

    return make


@pytest.fixture
def as_model(tmp_path: Path) -> Callable[[Path], Model]:
    """A function: file -> a model record, by its header alone."""

    def make(path: Path) -> Model:
        return Model(path.stem, path, (path,), "", resolve.facts((path,)), path.name)

    return make
