"""Whole studies on the small model, for tests that run, kill or spread them."""

import json
import random
import shutil
import subprocess
import time

import pytest

from tests import tiny_model
from tests.corpus.made_up import LANGUAGE, prose
from tests.study.whole import COMMAND, Bench


@pytest.fixture(scope="session")
def bench(tools, kernel_store, subprocess_env, tmp_path_factory):
    """A function: name -> a bench whose cache has nothing but the toolchain and the kernels."""
    first = tmp_path_factory.mktemp("studies")
    tiny_model.write(first / "tiny-f16.gguf")
    for code in ("qaa", "qab", "qac"):
        text = LANGUAGE.format(code=code, name=f"Language {code}")
        (first / "data" / "corpora").mkdir(parents=True, exist_ok=True)
        (first / "data" / "corpora" / f"{code}.toml").write_text(text)
        rng = random.Random(code)
        lines = [json.dumps({"id": f"{i:04d}", "text": prose(rng)[:300]}) for i in range(160)]
        (first / f"{code}.jsonl").write_text("\n".join(lines))

    def env_of(folder):
        env = subprocess_env(folder / "cache", tools)
        if not (folder / "cache" / "kernel").exists():
            (folder / "cache" / "kernel").symlink_to(kernel_store.root / "kernel")
        return env | {"IMATRIX_LAB_DATA": str(first / "data")}

    for code in ("qaa", "qab"):
        add = [COMMAND, "corpus", "add", str(first / f"{code}.jsonl"), "--lang", code]
        add += ["--name", "own", "--licence", "CC0-1.0"]
        subprocess.run(add, env=env_of(first), check=True, capture_output=True)

    def make(name, **rest):
        folder = first / name
        folder.mkdir()
        shutil.copy(first / "tiny-f16.gguf", folder)
        rng = random.Random(1)
        lines = [json.dumps({"id": f"{i}", "text": prose(rng)[:200]}) for i in range(4)]
        (folder / "short.jsonl").write_text("\n".join(lines))
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
