"""Importance matrices by the real llama-imatrix, of small models."""

import subprocess
from pathlib import Path

import pytest

from tests import tiny_model

WINDOW = 128


@pytest.fixture(scope="session")
def llama_imatrix(tools):
    """A function: arguments -> a finished run; no model is loaded to convert files."""

    def run(*words):
        argv = [tools.program("llama-imatrix"), "-t", "1", "-c", WINDOW, "-b", WINDOW, *words]
        return subprocess.run([str(w) for w in argv], capture_output=True, text=True, check=True)

    return run


@pytest.fixture(scope="session")
def models(tiny, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"dense": tiny, "moe": tiny_model.write(folder / "moe-f16.gguf", experts=8)}


@pytest.fixture(scope="session")
def made(models, llama_imatrix, own_text, tmp_path_factory) -> dict[str, dict[str, Path]]:
    """Model -> text -> GGUF file; text a is longer than b, and b's experts are not all hit."""
    folder = tmp_path_factory.mktemp("made")
    texts = {"a": own_text(8 * WINDOW), "b": own_text(3 * WINDOW), "c": own_text(4 * WINDOW)}
    found: dict[str, dict[str, Path]] = {}
    for model, path in models.items():
        for name, text in texts.items():
            out = folder / f"{model}-{name}.gguf"
            llama_imatrix("-m", path, "-f", text, "-o", out)
            found.setdefault(model, {})[name] = out
    return found
