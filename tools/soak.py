"""Use one process for long, and look for what it does not give back.

    make soak                                    all parts; study and page take longest
    python tools/soak.py study --n 2000
    python tools/soak.py server preference page

server       a llama-server with a tiny model answers n requests of one client
preference   pages for votes, each with answers of two tiny models, n answers in all
page         a report's page is written n times
study        a study of tiny models in a process of its own, about n steps

Printed are memory, open files, threads and children when 10, 60 and 95 % are done (a study has then
made its quants, scored them, and predicted their losses). A leak is a
tenth more memory (and 32 MiB) at the end than in the middle, or more files, threads or children.
Models and kernels are those of `tests/tiny_model.py` and of the user's store.
"""

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from bench_study import TYPES

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store, default_root
from imatrix_lab.llamacpp import server
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.publish.preference import pack
from imatrix_lab.publish.preference.prompts import Prompts
from imatrix_lab.report import html
from imatrix_lab.types import ComputeOptions, GenerateItem

MIB = 1 << 20
PARALLEL = 4
PROMPTS = 50
"""Of a page for votes."""


@dataclass(frozen=True)
class Held:
    """What a process and its children hold; memory in MiB."""

    memory_mib: float
    files: int
    threads: int
    children: int
    memory_of_children_mib: float


def held(process: psutil.Process) -> Held:
    """Return the least that a process holds within a second: programs come and go."""
    seen = []
    for _ in range(10):
        time.sleep(0.1)
        children, memory_of_children = process.children(recursive=True), 0
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                memory_of_children += child.memory_info().rss
        seen.append((process.memory_info().rss / MIB, process.num_fds(), process.num_threads(),
                     len(children), memory_of_children / MIB))  # fmt: skip
    return Held(*map(min, zip(*seen, strict=True)))


def is_leak(middle: Held, end: Held) -> bool:
    """Return whether more is held at the end than in the middle."""
    memory = ((middle.memory_mib, end.memory_mib),
              (middle.memory_of_children_mib, end.memory_of_children_mib))  # fmt: skip
    counts = ((middle.files, end.files), (middle.threads, end.threads),
              (middle.children, end.children))  # fmt: skip
    return any(b > 1.1 * a + 32 for a, b in memory) or any(b > a for a, b in counts)


def watched(name: str, n: int, soak: "Soak", done: Iterable[int]) -> bool:
    """Print what a process holds as work is `done`; return whether it leaks."""
    seen: list[Held] = []
    for i in done:
        if len(seen) < 3 and i >= (n // 10, n * 6 // 10, n * 95 // 100)[len(seen)]:
            seen.append(now := held(soak.process))
            print(f"{name:12}{i:6}{now.memory_mib:9.1f} MiB{now.files:5} files{now.threads:5}"
                  f" threads{now.children:3} children{now.memory_of_children_mib:9.1f} MiB",
                  flush=True)  # fmt: skip
    leaks = len(seen) < 3 or is_leak(*seen[1:])
    print(f"{name}: {'LEAK' if leaks else 'no leak'}", flush=True)
    return leaks


class Soak:
    """A folder with tiny models and a store; each part yields how much of its work is done."""

    def __init__(self, folder: Path):
        sys.path[:0] = [str(Path(__file__).parents[1])]
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir()
        for kind in ("toolchain", "kernel"):
            (self.store / kind).symlink_to(default_root() / kind)
        self.process = psutil.Process()
        self.whole: Any = importlib.import_module("tests.study.whole")
        self.texts: Any = importlib.import_module("tests.corpus.made_up")
        self.whole.furnish(folder, ["qaa", "qab"])
        tiny: Any = importlib.import_module("tests.tiny_model")
        self.models = [folder / "tiny-f16.gguf", tiny.write(folder / "other-f16.gguf", seed=7)]
        self.session = Session(Store(self.store), Silent())
        self.tools = get_toolchain("cpu", self.session)

    def server(self, n: int) -> Iterator[int]:
        """Answers of one llama-server."""
        with server.serve(self.tools, self.models[0], PARALLEL, 64, threads=1) as client:
            items = (GenerateItem(str(i), (("", f"number {i % 97}"),), 4) for i in range(n))
            for i, answer in enumerate(client.generate(items), 1):
                assert not answer.error, answer.error
                yield i

    def preference(self, n: int) -> Iterator[int]:
        """Pages for votes; each starts a llama-server for each model."""
        done = 0
        compute = ComputeOptions("cpu", threads=1, n_ctx=256)
        models = tuple(map(str, self.models))
        while done < n:
            prompts = Prompts("qaa", {"sums": tuple(f"{done} + {i}" for i in range(PROMPTS))})
            out = self.folder / f"vote-{done}.html"
            pack.make(pack.PackRequest(prompts, models, out, compute, 8, parallel=PARALLEL),
                      self.session)  # fmt: skip
            done += len(models) * PROMPTS
            yield done

    def page(self, n: int) -> Iterator[int]:
        """A report's page."""
        found = importlib.import_module("tests.report.made_up").study(("en", "nb"), ("Q4_K_M",), 1)
        first = html.page(found)
        for i in range(1, n + 1):
            assert html.page(found) == first
            yield i

    def study(self, n: int) -> Iterator[int]:
        """Steps of a study, in a process of its own."""
        with mock.patch.dict(os.environ, IMATRIX_LAB_DATA=str(self.folder / "data")):
            for code in ("qba", "qbb"):
                self.texts.add(self.folder / "data", code, code, n_documents=1500, n_chars=300)
        text = self.whole.RECIPE.format(keep="scores").replace("qaa", "qba").replace("qab", "qbb")
        text = text.replace('types = ["Q4_K_M", "Q2_K"]', f"types = {json.dumps(TYPES)}")
        text = text.replace("samples = 2", f"samples = {max(2, n // 100)}")
        (self.folder / "recipe.toml").write_text(text, encoding="utf-8")
        env = {"IMATRIX_LAB_CACHE": self.store, "IMATRIX_LAB_DATA": self.folder / "data",
               "OMP_NUM_THREADS": 1}  # fmt: skip
        argv = [self.whole.COMMAND, "study", "run", "recipe.toml"]
        with (self.folder / "study.log").open("wb") as log:
            running = subprocess.Popen(
                [*argv, "--out", "out", "--jobs", "1"], cwd=self.folder, stdout=log, stderr=log,
                env={**os.environ, **{k: str(v) for k, v in env.items()}},
            )  # fmt: skip
        self.process = psutil.Process(running.pid)
        while running.poll() is None:
            time.sleep(0.5)
            with contextlib.suppress(FileNotFoundError):
                steps = json.loads((self.folder / "out" / "status.json").read_bytes())["steps"]
                n_done = sum(step["state"] == "done" for step in steps.values())
                yield n * n_done // max(1, len(steps))
        if running.returncode:
            raise SystemExit((self.folder / "study.log").read_text()[-2000:])
        print(f"study: {len(list((self.folder / 'out' / 'steps').iterdir()))} steps")


def main() -> int:
    """Soak what is named; return 1 if something leaks."""
    parts = ("server", "preference", "page", "study")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {' '.join(parts)}; all")
    parser.add_argument("--n", type=int, help="of each [default: 1000; 2000 steps of a study]")
    options = parser.parse_args()
    n_leaks = 0
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder))
        for name in options.parts or parts:
            n = options.n or (2000 if name == "study" else 1000)
            part: Callable[[int], Iterator[int]] = getattr(soak, name)
            soak.process = psutil.Process()
            n_leaks += watched(name, n, soak, part(n))
    return min(1, n_leaks)


if __name__ == "__main__":
    sys.exit(main())
