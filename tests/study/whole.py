"""A whole study on the small model, through the command line: its recipe, folder and commands."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import psutil

from imatrix_lab.core.files import DIGEST
from imatrix_lab.report import results
from tests import tiny_model
from tests.corpus import made_up

COMMAND = str(Path(sys.executable).parent / "imatrix-lab")
RECIPE = """
schema = 1
name = "small"
types = ["Q4_K_M", "Q2_K"]
models = ["tiny-f16.gguf"]
keep = "{keep}"
[calibration]
texts = ["none", "qaa", "qab", "qaa=0.5,qab=0.5"]
tokens = 1536
samples = 2
[evaluation]
texts = ["qaa", "qab=short.jsonl"]
documents = 2
ctx = 128
[comparison]
baseline = "none"
resamples = 100
"""
SMALL = """
schema = 1
name = "small"
types = ["Q2_K"]
models = ["tiny-f16.gguf"]
keep = "{keep}"
[calibration]
texts = ["none", "qaa"]
tokens = 1024
[evaluation]
texts = ["short=short.jsonl"]
documents = 4
ctx = 128
[comparison]
resamples = 100
"""
EXAM_TASK = """
[[tasks]]
name = "exam.toml"
languages = ["en"]
data = "exam.json"
"""
TASKS = f"""{EXAM_TASK}
[[tasks]]
name = "belebele"
languages = ["en"]
data = "empty"
"""
ITEMS = [
    {"id": str(i), "ask": f"Number {i}?", "choices": ["one", "two"], "right": i % 2, "text": str(i)}
    for i in range(6)
]


def furnish(folder, codes):
    """Put the small model, a short text, and languages with text in `data` into a folder."""
    tiny_model.write(folder / "tiny-f16.gguf")
    rng = random.Random(1)
    lines = [json.dumps({"id": f"{i}", "text": made_up.prose(rng)[:200]}) for i in range(4)]
    (folder / "short.jsonl").write_text("\n".join(lines))
    with mock.patch.dict(os.environ, IMATRIX_LAB_DATA=str(folder / "data")):
        for code in codes:
            made_up.add(folder / "data", code, f"Language {code}", n_documents=160, n_chars=300)


class Bench:
    """A folder with a model, a recipe, texts in two languages, a cache, and one study."""

    def __init__(self, folder, env, text=RECIPE, keep="scores"):
        self.folder, self.env = folder, env
        self.recipe, self.out = folder / "recipe.toml", folder / "study"
        self.recipe.write_text(text.format(keep=keep))

    def start(self, *words):
        return subprocess.Popen(
            [COMMAND, "study", *map(str, words)], env=self.env, cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words, status=0):
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, err
        return out, err

    def study(self, *words, status=0):
        return self.run("run", self.recipe, "--out", self.out, *words, status=status)

    def load(self):
        return results.read(self.out)

    def same(self):
        """What must not depend on the clock, on jobs, or on being stopped."""
        study = json.loads((self.out / results.FILE).read_text())
        del study["times"], study[DIGEST]  # which is of the times too
        return study

    def quants(self):
        """Every quant that is left, in the study or in the cache."""
        cache = Path(self.env["IMATRIX_LAB_CACHE"])
        return [*self.out.rglob("*Q?_K*.gguf"), *cache.glob("quant/*/*.gguf")]


class Workers:
    """Workers of a study by name, each with a store of its own, and the file they find it by.

    `env_of` takes such a store to a worker's environment, `program` is imatrix-lab.
    """

    def __init__(self, folder, env_of, program=(COMMAND,)):
        self.folder, self.file = folder, folder / "scheduler.json"
        self._env_of, self._program, self._processes = env_of, program, {}
        self.more_env = {}

    def start(self, *names, jobs=1, more=()):
        for name in names:
            words = ["study", "worker", "--scheduler-file", self.file, "--name", name]
            words += ["--jobs", jobs, *more]
            with (self.folder / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    [*self._cpu(), *self._program, *map(str, words)], cwd=self.folder,
                    env=self._env_of(self.folder / f"store-{name}"),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip

    def _cpu(self):
        """One processor for each, as several machines have: llama.cpp waits in a spin."""
        taskset, mine = shutil.which("taskset"), sorted(os.sched_getaffinity(0))
        cpu = mine[len(self._processes) % len(mine)]
        return [taskset, "-c", str(cpu)] if taskset else []

    def alive(self, name):
        return self._processes[name].poll() is None

    def kill(self, name, rng):
        """Kill the process that runs the steps, which its parent starts again, or all of it.

        Return whether there was one: what is only starting is left alone.
        """
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._processes[name].pid)
            children = parent.children(recursive=True)
            inner = [p for p in children if "spawn_main" in " ".join(p.cmdline())]
            if not inner:
                return False
            is_whole = rng.random() < 0.5
            for process in (parent, *children) if is_whole else inner:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if is_whole:
                self._processes[name].wait()
                self.start(name)
            return True
        return False

    def stop(self):
        for process in self._processes.values():
            process.terminate()  # SIGINT is ignored by what a script runs in the background
        for process in self._processes.values():
            process.wait(timeout=120)
