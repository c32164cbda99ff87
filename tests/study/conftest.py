"""Whole studies on the small model, for tests that run, kill or spread them."""

import shutil
import time

import pytest

from tests.corpus.made_up import LANGUAGE
from tests.study.whole import Bench, furnish


@pytest.fixture(scope="session")
def bench(tools, kernel_store, subprocess_env, tmp_path_factory):
    """A function: name -> a bench whose cache has nothing but the toolchain and the kernels."""
    first = tmp_path_factory.mktemp("studies")
    furnish(first, ("qaa", "qab"))
    without = LANGUAGE.format(code="qac", name="Language qac")
    (first / "data" / "corpora" / "qac.toml").write_text(without)

    def env_of(folder):
        env = subprocess_env(folder / "cache", tools)
        if not (folder / "cache" / "kernel").exists():
            (folder / "cache" / "kernel").symlink_to(kernel_store.root / "kernel")
        return env | {"IMATRIX_LAB_DATA": str(first / "data")}

    def make(name, **rest):
        folder = first / name
        folder.mkdir()
        for file in ("tiny-f16.gguf", "short.jsonl"):
            shutil.copy(first / file, folder)
        return Bench(folder, env_of(folder), **rest)

    return make


@pytest.fixture(scope="session")
def calm(bench):
    """An undisturbed study that keeps scores alone: its bench, and the seconds it took."""
    own = bench("calm")
    began = time.monotonic()
    own.out_text, _ = own.study()
    own.seconds = time.monotonic() - began
    return own
