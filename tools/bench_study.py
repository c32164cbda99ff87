"""Compare the cost of a study with a plain script of llama.cpp's programs for the same grid.

    make bench-study                          demo model, 2 languages x 2 samples, pools, mixtures;
                                              35 minutes
    python tools/bench_study.py --cluster     tiny model: steps by a worker of a cluster; 10 minutes

With --cluster a study of many short steps runs by the scheduler alone, and by a worker with as many
jobs; of a short and a long study the difference is what a step takes, without what is once.

Else both sides quantize with the same calibration texts and score at least the same number of
tokens:

    study    one run a sample; pools and mixtures are merged from these; original and quants read a
             text together, and nearly every token is scored; with all quants on disk at once, and
             with `limits.disk_gib` for a third of them
    script   one run of llama-imatrix for every sample, pool and mixture; llama-perplexity writes
             the original's logits of a text, then reads them once for each quant; it scores the
             second half of each window, so it reads twice as many

The texts are built before and not timed. Seconds are wall time of whole processes. The script
keeps its quants to the end and one text's logits at a time. Run it on an idle machine: one side
runs after the other.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from common import children_cpu_s, imatrix_argv, quantize

from imatrix_lab.cli.terminal import Terminal
from imatrix_lab.core import process
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store, default_root
from imatrix_lab.corpus import documents
from imatrix_lab.corpus.documents import JOINT
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.llamacpp.toolchain import Toolchain, cores, default_backend
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import tune
from imatrix_lab.score.windows import Protocol, document_windows
from imatrix_lab.types import ComputeOptions, CorpusFacts, Document, Model, Request, TextOptions

WINDOW, SCORED = 512, 255
"""Tokens of llama-perplexity's windows, and how many of these it scores."""
SAMPLES = 2
DISK_GIB = 0.7
"""Three of the nine quants at a time."""
TYPES = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_1",
         "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS")  # fmt: skip
SHARED = ("toolchain", "model", "kernel", "fetched", "text", "sources", "corpus", "sha256.json")
"""Cached for both sides."""


@dataclass(frozen=True)
class Grid:
    """Two languages, their pools and mixtures, and no imatrix.

    Attributes
    ----------
    tokens : of a calibration sample.
    documents : scored of each language.
    """

    model: str = "demo"
    languages: tuple[str, str] = ("nb", "en")
    type: str = "Q3_K_S"
    tokens: int = 4_096
    documents: int = 4

    def recipe(self, disk_gib: float) -> str:
        """Return the study's recipe; mixtures count tokens, as llama-imatrix does."""
        a, b = self.languages
        return f"""
schema = 1
name = "bench"
models = ["{self.model}"]
types = ["{self.type}"]
keep = "scores"
seed = 0

[calibration]
texts = ["{a}", "{b}", "{a}=0.5,{b}=0.5", "none"]
tokens = {self.tokens}
samples = {SAMPLES}
pooled = true
merge_by = "tokens"

[evaluation]
texts = ["{a}", "{b}"]
documents = {self.documents}

[limits]
disk_gib = {disk_gib}
"""

    def imatrices(self) -> dict[str, list[tuple[str, int]]]:
        """Return what the script computes imatrices on: (language, sample) of each."""
        a, b = self.languages
        samples = range(1, SAMPLES + 1)
        imatrices = {f"{code}-{k}": [(code, k)] for code in self.languages for k in samples}
        imatrices |= {f"{code}-pooled": [(code, k) for k in samples] for code in self.languages}
        return imatrices | {f"mixture-{k}": [(a, k), (b, k)] for k in samples}


@dataclass(frozen=True)
class Cost:
    """What one side took.

    Attributes
    ----------
    peak_bytes, left_bytes : on disk, at most and at the end.
    scoring_bytes : written by scoring alone.
    imatrix_tokens : run through the model by llama-imatrix.
    read_tokens, scored_tokens : of the texts, by each model.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    left_bytes: int
    scoring_bytes: int
    imatrix_tokens: int
    read_tokens: int
    scored_tokens: int


class Disk:
    """The size of a folder, watched by a thread."""

    def __init__(self, root: Path):
        self.root, self.peak_bytes = root, 0

    def now(self) -> int:
        """Return its bytes; hard links count once, targets of symbolic links do not."""
        sizes = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                try:
                    stat = Path(folder, name).lstat()
                except FileNotFoundError:  # removed since
                    continue
                sizes[stat.st_ino] = stat.st_blocks * 512
        return sum(sizes.values())

    @contextmanager
    def watched(self, every_s: float = 0.5) -> Iterator[None]:
        """Record the peak during the block."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(every_s):
                self.peak_bytes = max(self.peak_bytes, self.now())

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.peak_bytes = max(self.peak_bytes, self.now())


class Bench:
    """Texts and model of one run."""

    def __init__(self, grid: Grid, root: Path, store: Store, progress: Progress):
        self.grid, self.root, self.store, self.threads = grid, root, store, cores()
        request = Request("", (), grid.model, grid.tokens, root, ComputeOptions(default_backend()))
        self.tools: Toolchain
        self.model: Model
        self.tools, self.model = tune.prepare(request, Session(store, progress))
        self.corpora: dict[tuple[str, int], CorpusFacts] = {}
        for code in grid.languages:
            for k in range(1, SAMPLES + 1):
                sample = TextOptions(sample=k, n_samples=SAMPLES)
                text = replace(request, text=code, corpus=sample)
                self.corpora[code, k] = tune.corpus_of(
                    text, self.tools, self.model, Session(store, progress)
                )

    def heldout(self, code: str) -> list[Document]:
        """Return a language's held-out documents."""
        return documents.read(self.corpora[code, 1].heldout)

    def tokens_of_study(self) -> dict[str, tuple[int, int]]:
        """Return how many tokens of each language's text a model reads and scores."""
        protocol = Protocol()
        counts = {}
        with Vocabulary(self.tools, self.model.path) as vocabulary:
            for code in self.grid.languages:
                texts = [d.text for d in self.heldout(code)[: self.grid.documents]]
                tokens = [vocabulary.tokens(t, add_special=False) for t in texts]
                windows = document_windows(tokens, vocabulary.bos(), protocol)
                read = sum(len(w.tokens) - 1 for w in windows)
                counts[code] = read, sum(w.n_scored for w in windows)
        return counts

    def study(self, disk_gib: float) -> Cost:
        """Run the study in a store of its own."""
        folder = self.root / f"study-{disk_gib}"
        cache, out = folder / "cache", folder / "study"
        cache.mkdir(parents=True)
        for name in SHARED:
            if (self.store.root / name).exists():
                (cache / name).symlink_to(self.store.root / name)
        recipe = folder / "bench.toml"
        recipe.write_text(self.grid.recipe(disk_gib), "utf-8")
        entry = "import sys; from imatrix_lab.cli.main import run; sys.exit(run(sys.argv[1:]))"
        argv = [sys.executable, "-c", entry, "study", "run", str(recipe), "--out", str(out)]
        disk = Disk(folder)
        with disk.watched(), clocks() as clock:
            process.run(
                argv, log=folder / "study.log",
                env={**os.environ, "IMATRIX_LAB_CACHE": str(cache)},
            )  # fmt: skip
        tokens = self.tokens_of_study()
        return Cost(
            clock.wall_s,
            clock.cpu_s,
            disk.peak_bytes,
            disk.now(),
            sum(p.stat().st_size for p in out.glob("scores/*.parquet")),
            sum(c.n_tokens // WINDOW * WINDOW for c in self.corpora.values()),
            sum(read for read, _ in tokens.values()),
            sum(scored for _, scored in tokens.values()),
        )

    def script(self) -> Cost:
        """Run llama.cpp's programs one after the other."""
        folder = self.root / "script"
        folder.mkdir()
        disk, scoring_bytes, n_windows = Disk(folder), 0, 0
        texts = {code: self._flat(folder, code) for code in self.grid.languages}
        calibration = {name: self._joined(folder, name) for name in self.grid.imatrices()}
        with disk.watched(), clocks() as clock:
            quants = [self._quant(folder, None)]
            for name, (text, n) in calibration.items():
                self._imatrix(folder, name, text, n)
                quants.append(self._quant(folder, name))
            for path, n in texts.values():
                scoring_bytes += self._score(folder, path, n, quants)
                n_windows += n
        return Cost(
            clock.wall_s,
            clock.cpu_s,
            disk.peak_bytes,
            disk.now(),
            scoring_bytes,
            sum(n for _, n in calibration.values()) * WINDOW,
            n_windows * WINDOW,
            n_windows * SCORED,
        )

    def _joined(self, folder: Path, name: str) -> tuple[Path, int]:
        """Return an imatrix's text, and its windows."""
        parts = [self.corpora[key] for key in self.grid.imatrices()[name]]
        path = folder / f"{name}.txt"
        path.write_bytes(b"\n".join(c.calibration.read_bytes() for c in parts))
        return path, sum(c.n_tokens // WINDOW for c in parts)

    def _flat(self, folder: Path, code: str) -> tuple[Path, int]:
        """Return a text with the windows that llama-perplexity needs for as many scored tokens."""
        n_windows = -(-self.tokens_of_study()[code][1] // SCORED)
        path = folder / f"heldout-{code}.txt"
        text = JOINT.join(d.text for d in self.heldout(code))
        with Vocabulary(self.tools, self.model.path) as vocabulary:
            if vocabulary.count(text) < n_windows * WINDOW:
                sys.exit(f"not enough held-out text in {code} for {n_windows} windows")
        path.write_bytes(text.encode())
        return path, n_windows

    def _imatrix(self, folder: Path, name: str, text: Path, n_windows: int) -> None:
        program = self.tools.program("llama-imatrix")
        out = folder / f"{name}.imatrix.gguf"
        compute = Compute(self.threads, gpu_layers=0)
        path = self.model.path
        process.run(imatrix_argv(program, path, text, out, compute, n_windows))

    def _quant(self, folder: Path, name: str | None) -> Path:
        imatrix = folder / f"{name}.imatrix.gguf" if name else None
        target = folder / f"{name}.gguf"
        return quantize(self.tools, self.model.path, self.grid.type, target, imatrix)

    def _score(self, folder: Path, text: Path, n_windows: int, quants: list[Path]) -> int:
        """Score quants on a text; return the bytes of the original's logits, which are removed."""
        logits = folder / "logits.bin"
        program = self.tools.program("llama-perplexity")
        for path in [self.model.path, *quants]:
            compute = Compute(self.threads, gpu_layers=0)
            argv = programs.perplexity_argv(program, path, text, compute, n_windows=n_windows)
            argv += ["--kl-divergence-base", str(logits)]
            process.run(argv + ["--kl-divergence"] * (path != self.model.path))
        size_bytes = logits.stat().st_size
        logits.unlink()
        return size_bytes


@dataclass
class Clock:
    """Wall time, and processor time of the programs that ran."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


@contextmanager
def clocks() -> Iterator[Clock]:
    """Time a block."""
    clock, began, before = Clock(), time.monotonic(), children_cpu_s()
    yield clock
    clock.wall_s, clock.cpu_s = time.monotonic() - began, children_cpu_s() - before


def report(study: Cost, script: Cost, grid: Grid) -> None:
    """Print both sides, their ratios, and where the ratios come from."""
    n_models = 2 + len(grid.imatrices())
    print(f"{'':28}{'study':>16}{'script':>16}{'ratio':>9}")

    def row(name: str, a: float, b: float, unit: str) -> None:
        print(f"{name:28}{a:14,.0f} {unit:1}{b:14,.0f} {unit:1}{a / max(b, 1e-9):9.4f}")

    row("wall time (at most 0.6)", study.wall_s, script.wall_s, "s")
    row("processor time", study.cpu_s, script.cpu_s, "s")
    row("disk, at most", study.peak_bytes, script.peak_bytes, "B")
    row("disk, at the end", study.left_bytes, script.left_bytes, "B")
    row("disk, scoring alone (0.01)", study.scoring_bytes, script.scoring_bytes, "B")
    row("tokens for imatrices", study.imatrix_tokens, script.imatrix_tokens, "")
    row("tokens scored, by each model", study.scored_tokens, script.scored_tokens, "")
    row("tokens read for that", study.read_tokens, script.read_tokens, "")
    print(
        f"imatrix runs: {SAMPLES * len(grid.languages)} and {len(grid.imatrices())}, the rest"
        f" merged; scored of a token read: {study.scored_tokens / study.read_tokens:.3f} and"
        f" {script.scored_tokens / script.read_tokens:.3f}; {n_models} models, the original once"
        f" a text on both sides: {len(grid.languages)} passes"
    )


@dataclass(frozen=True)
class Steps:
    """A study of a tiny model: how many steps, and what these took."""

    n: int
    wall_s: float
    cpu_s: float


def tiny_study(folder: Path, types: Sequence[str], jobs: int, by_worker: bool) -> Steps:
    """Run a study of a tiny model that makes and scores quants of these types."""
    whole = importlib.import_module("tests.study.whole")
    whole.furnish(folder, ("qaa", "qab"))
    cache = {"IMATRIX_LAB_CACHE": str(folder / "store"), "IMATRIX_LAB_DATA": str(folder / "data")}

    def env_of(store: Path) -> dict[str, str]:
        store.mkdir()
        for kind in ("toolchain", "kernel"):
            (store / kind).symlink_to(default_root() / kind)
        return {**os.environ, **cache, "IMATRIX_LAB_CACHE": str(store), "OMP_NUM_THREADS": "1"}

    text = whole.RECIPE.replace('types = ["Q4_K_M", "Q2_K"]', f"types = {json.dumps(types)}")
    bench = whole.Bench(folder, env_of(folder / "store"), text)
    before = children_cpu_s()
    workers = whole.Workers(folder, env_of)
    if by_worker:
        workers.start("one", jobs=jobs)
    began = time.monotonic()
    bench.study(*(("--cluster", workers.file) if by_worker else ("--jobs", jobs)))
    wall_s = time.monotonic() - began
    workers.stop()
    n_steps = len(list((bench.out / "steps").iterdir()))
    return Steps(n_steps, wall_s, children_cpu_s() - before)


def bench_cluster(jobs: int) -> None:
    """Print what a step costs by a worker beside the scheduler alone."""
    sys.path[:0] = [str(Path(__file__).parents[1])]
    took: dict[str, list[Steps]] = {"scheduler": [], "worker": []}
    for types in (TYPES[:2], TYPES):
        for name, studies in took.items():
            with tempfile.TemporaryDirectory() as folder:
                studies.append(tiny_study(Path(folder), types, jobs, name == "worker"))
            print(f"{name}: {studies[-1]}", flush=True)
    (a0, a1), (b0, b1) = took.values()
    n = a1.n - a0.n
    print(f"{jobs} jobs; {n} steps more{'scheduler':>16}{'worker':>12}{'ratio':>8}{'more':>10}")

    def row(name: str, a: float, b: float, unit: str) -> None:
        print(f"{name:24}{a:11.2f} s{b:10.2f} s{b / a:8.3f}{b - a:10.3f} {unit}")

    row("wall time", a1.wall_s, b1.wall_s, "s")
    row("processor time", a1.cpu_s, b1.cpu_s, "s")
    row("wall time a step", (a1.wall_s - a0.wall_s) / n, (b1.wall_s - b0.wall_s) / n, "s")
    row("processor time a step", (a1.cpu_s - a0.cpu_s) / n, (b1.cpu_s - b0.cpu_s) / n, "s")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cluster", action="store_true", help="what steps cost on a cluster")
    if parser.parse_args().cluster:
        return bench_cluster(cores())
    grid = Grid()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(grid, Path(folder), Store(), Terminal())
        print(f"{grid}; {bench.threads} threads", flush=True)
        studies = {disk_gib: bench.study(disk_gib) for disk_gib in (0.0, DISK_GIB)}
        script = bench.script()
    for disk_gib, study in studies.items():
        print(f"disk_gib = {disk_gib}")
        report(study, script, grid)


if __name__ == "__main__":
    main()
