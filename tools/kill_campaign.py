"""Kill, unplug and starve real runs on a tiny model: nothing half is taken for whole, same bytes.

    make kills FLAGS="--minutes 20"
    python tools/kill_campaign.py kill power full twice clock gone --only collect,score
    python tools/kill_campaign.py workers --only study

Each command runs once undisturbed. Then, again and again in a folder of its own, a fault is put
into it; then it runs to its end, and its files must have the undisturbed run's bytes.

kill    SIGKILL at one to eight random moments
power   the same, and files that were not flushed lose what was written (zeros, half, or nothing)
full    the disk is full from the n-th write on; the error says so, and has no traceback
every   the same for each n from --first on, or every --step-th, until a run has no n-th write
twice   two runs at once in one folder, one of which may be killed
clock   the clock jumps by years, back or ahead, at the start or during the run
gone    the store is removed under the run
workers the study runs on a cluster of three workers, of which one is killed every few seconds

After each fault every artefact in the store must have the sha256 of its manifest, every output must
be whole, and no program may be left. llama.cpp and the kernels are those of the user's store.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.core.store import default_root

ROOT = Path(__file__).parents[1]
FAULTS = Path(__file__).with_name("faults.c")
RUNNER = """
import sys
from imatrix_lab.core import process
from imatrix_lab.imatrix import collect
from imatrix_lab.quantize import probes
process._KEPT_PREFIXES += ("FAULTS_", "LD_PRELOAD")
probes.PIECE_TOKENS, probes.PIECES_MIN, probes.PIECES_MAX = 24, 4, 4
collect.SAVE_S = collect.SAVE_SHARE = 0.001
from imatrix_lab.cli.main import main
sys.argv[0] = "imatrix-lab"
"""
PROGRAM = (sys.executable, "-P", "-c", RUNNER + "main()")
SERVER = """
import ctypes, json, os
import imatrix_lab.cli.score, imatrix_lab.cli.study, imatrix_lab.cli.tune
import imatrix_lab.pipeline.allocate, imatrix_lab.pipeline.sensitivity, imatrix_lab.score.run
for line in sys.stdin:
    argv, folder, env, said = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 0)
    ctypes.CDLL(None).faults_start()
    sys.argv[1:] = argv
    main()
"""
SHORT = ["--ctx", "128", "--threads", "1"]
MODEL = ["--model", "tiny-f16.gguf"]
COMMANDS: Mapping[str, list[str]] = {
    "tune": ["tune", "qaa", *MODEL, "--tokens", "2048", *SHORT, "--type", "Q4_K_M", "--no-quick",
             "--out", "out"],
    "collect": ["imatrix", "build", *MODEL, "--corpus", "qaa", "--tokens", "4096", *SHORT,
                "--moments", "--out", "out/qaa.moments.gguf"],
    "allocate": ["quantize", *MODEL, "--imatrix", "qaa.moments.gguf", "--size", "Q4_K_M", *SHORT,
                 "--out", "out"],
    "feedback": ["quantize", *MODEL, "--imatrix", "qaa.moments.gguf", "--type", "Q4_K_M", *SHORT,
                 "--feedback", "--out", "out"],
    "score": ["score", "run", "--reference", "tiny-f16.gguf", "--quant", "tiny-Q4_K_M.gguf",
              "--text", "qaa", "--limit", "6", *SHORT, "--out", "out"],
    "study": ["study", "run", "recipe.toml", "--out", "out"],
    "publish": ["publish", "quants", "--to", "user/tiny-qaa-GGUF"],
    "quantize": ["quantize", *MODEL, "--imatrix", "qaa.moments.gguf", "--type", "Q4_K_M", *SHORT,
                 "--out", "out"],
}  # fmt: skip
TOKEN = "hf_ofTheLoopbackHub"
_CLOCKED = (
    "status.json",
    "results.json",
    "report.html",
    "report.md",
    "steps/",
    "study.log",
    "recipe.toml",
)
"""Of a study: what has times in it; `results.json` is compared without them."""


@dataclass
class Trial:
    """A folder in which one command runs, and the environment it runs in."""

    folder: Path
    argv: list[str]
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    hub: Any = None  # tests.fakes.hub_upload.UploadHub, for what is published
    server: "subprocess.Popen[str] | None" = None  # a SERVER, which runs it without new imports

    def env(self, store: Path) -> dict[str, str]:
        """Return the environment of a program with this store."""
        own = {"IMATRIX_LAB_CACHE": store, "IMATRIX_LAB_DATA": self.folder / "data",
               "HOME": self.folder, "TRIAL": self.folder, "HF_ENDPOINT": "http://127.0.0.1:9",
               "XDG_TRIAL": self.folder, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}  # fmt: skip
        if self.hub:
            own |= {"HF_ENDPOINT": self.hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        return {**os.environ, **{k: str(v) for k, v in own.items()}, **self.faults}

    def start(self, *more: str) -> "subprocess.Popen[str]":
        """Start the command in a session of its own."""
        return subprocess.Popen(
            [*PROGRAM, *self.argv, *more], cwd=self.folder, env=self.env(self.folder / "store"),
            text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self) -> tuple[int, str]:
        """Run the command to its end; return its status and what it said."""
        if self.server:
            assert self.server.stdin and self.server.stdout
            log = self.folder.with_suffix(".said")
            call = self.argv, str(self.folder), self.env(self.folder / "store"), str(log)
            print(json.dumps(call), file=self.server.stdin, flush=True)
            return int(self.server.stdout.readline()), log.read_text(errors="replace")
        process = self.start()
        _, said = process.communicate(timeout=600)
        return process.returncode, said

    def outputs(self) -> dict[str, str]:
        """Return the outputs' hashes by name, without what has times in it."""
        if self.hub:
            return self.published()
        found = {}
        out = self.folder / "out"
        for path in sorted(out.rglob("*")):
            name = path.relative_to(out).as_posix()
            if not path.is_file() or path.name.endswith(".lock"):
                continue
            if name == "results.json":
                study = json.loads(path.read_bytes())
                del study["times"], study["digest"]
                found[name] = hashlib.sha256(json.dumps(study).encode()).hexdigest()
            elif not any(name.startswith(x) for x in _CLOCKED):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def published(self) -> dict[str, str]:
        """Return the hashes of what is on the Hub, and whether a tag names it."""
        repo = self.argv[self.argv.index("--to") + 1]
        found = {
            name: hashlib.sha256(content).hexdigest()
            for name, content in self.hub.files(repo).items()
        }
        tags = self.hub.tags.get(repo, {})
        return found | {f"tag {t}": str(c == self.hub.commit(repo)) for t, c in tags.items()}

    def broken(self, whole: Mapping[str, str]) -> list[str]:
        """Return what is half: artefacts that are not as their manifest says, and outputs."""
        wrong = []
        stores = (self.folder / "store", self.folder / "out" / "work")  # a study's own, to its end
        for manifest in (m for store in stores for m in store.glob("*/*/manifest.json")):
            if manifest.parts[-3] in ("work", "toolchain", "kernel"):
                continue
            try:
                files = json.loads(manifest.read_bytes())["files"]
            except ValueError:
                continue  # it is taken for none, as `run` will show
            for name, entry in files.items():
                path = manifest.parent / name
                content = path.read_bytes() if path.exists() else b""
                if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                    wrong.append(str(path.relative_to(self.folder)))
        mixed = ("manifest.json", "README.md")  # written more than once in a run
        for name, sha256 in self.outputs().items():
            hidden = name.rpartition("/")[2].startswith(".") or name.startswith("work/")
            if not hidden and name not in mixed and whole.get(name) != sha256:
                wrong.append(f"out/{name}")
        if self.hub and "README.md" in (there := self.outputs()):  # the card comes last
            wrong += [f"{n} is not there" for n in whole if n not in there and " " not in n]
        return wrong

    def left(self) -> list[str]:
        """Return the programs that still run after ten seconds."""
        mark = f"XDG_TRIAL={self.folder}\0".encode()
        for _ in range(100):
            found = []
            for environ in Path("/proc").glob("[0-9]*/environ"):
                with contextlib.suppress(OSError):
                    if mark in environ.read_bytes():
                        found.append(environ.with_name("cmdline").read_bytes().decode()[:80])
            if not found:
                return []
            time.sleep(0.1)
        return found


class Campaign:
    """Everything that is tried, and what came of it."""

    def __init__(self, work: Path, seed: int, step: int = 1):
        self.work, self.rng, self.step = work, random.Random(seed), step
        self.base = work / "base"
        self.library = work / "faults.so"
        self.whole: dict[str, dict[str, str]] = {}
        self.whole_study: Any = None  # tests.study.whole
        self.hub: Any = None
        self.seconds: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.next_full: Counter[str] = Counter()
        self.done: set[tuple[str, str]] = set()
        self.failures: list[str] = []

    def prepare(self, names: Collection[str]) -> None:
        """Make model, text, recipe, imatrix and quant, which the commands read."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.base.mkdir(parents=True)
        sys.path[:0] = [str(ROOT)]
        compile_ = ["cc", "-O2", "-shared", "-fPIC", "-o", self.library, FAULTS, "-ldl"]
        subprocess.run(list(map(str, compile_)), check=True)
        self.whole_study = importlib.import_module("tests.study.whole")
        self.whole_study.furnish(self.base, ["qaa"])
        recipe = self.whole_study.SMALL.format(keep="scores")
        (self.base / "recipe.toml").write_text(recipe, encoding="utf-8")
        store = self.base / "store"
        store.mkdir()
        for kind in ("toolchain", "kernel"):
            shutil.copytree(default_root() / kind, self.work / kind, symlinks=True)
            (store / kind).symlink_to(self.work / kind)
        quant = ["quantize", *MODEL, "--imatrix", "none", "--type", "Q4_K_M", "--heldout", "qaa"]
        for argv, made, name, users in (
            (COMMANDS["collect"], "out/qaa.moments.gguf", "qaa.moments.gguf",
             {"allocate", "feedback", "quantize"}),
            ([*quant, *SHORT, "--out", "out"], "out/tiny-Q4_K_M.gguf", "tiny-Q4_K_M.gguf",
             {"score"}),
            (COMMANDS["tune"], "out", "quants", {"publish"}),
        ):  # fmt: skip
            if users.isdisjoint(names):
                continue
            status, said = Trial(self.base, argv).run()
            if status:
                raise SystemExit(said)
            (self.base / made).rename(self.base / name)
            shutil.rmtree(self.base / "out", ignore_errors=True)
        if "publish" in names:
            self.hub = importlib.import_module("tests.fakes.hub_upload").UploadHub(TOKEN)
            self.hub.__enter__()  # until the campaign ends
        for path in store.iterdir():  # all is to be made in the trials
            if not path.is_symlink():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def trial(self, name: str) -> Trial:
        """Return a fresh folder for a command."""
        folder = self.work / f"trial-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.base, folder, symlinks=True)
        data = folder / "data"
        for file in data.rglob("*.toml"):  # which name their files by whole paths
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(str(self.base), str(folder)), encoding="utf-8")
        trial = Trial(folder, list(COMMANDS[name]))
        if name == "publish":
            self.hub.forget()
            trial.hub = self.hub
        return trial

    def undisturbed(self, name: str) -> None:
        """Run a command once without faults."""
        trial, began = self.trial(name), time.monotonic()
        status, said = trial.run()
        if status:
            raise SystemExit(f"{name}: {said}")
        self.seconds[name] = time.monotonic() - began
        self.whole[name] = trial.outputs()
        print(f"{name}: {self.seconds[name]:.1f} s, {len(self.whole[name])} files", flush=True)

    def killed(self, trial: Trial, name: str) -> None:
        """Start a command and kill it at a random moment, with all that it started a part of."""
        process = trial.start()
        try:
            process.communicate(timeout=self.rng.uniform(0.2, 1.05 * self.seconds[name]))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            self.counts[f"{name} SIGKILLs"] += 1

    # -- faults; each leaves a folder in which the command is run to its end

    def kill(self, trial: Trial, name: str) -> None:
        """SIGKILL."""
        for _ in range(self.rng.choice((1, 2, 4, 8))):
            self.killed(trial, name)
            self.check(trial, name)

    def power(self, trial: Trial, name: str) -> None:
        """SIGKILL, and what was not flushed is lost."""
        before = {p: _state(p) for p in _files(trial.folder)}
        log = self.work / "faults.log"
        for _ in range(self.rng.choice((1, 1, 2))):
            log.unlink(missing_ok=True)
            trial.faults = {"LD_PRELOAD": str(self.library), "FAULTS_LOG": str(log),
                            "FAULTS_DIR": str(trial.folder)}  # fmt: skip
            self.killed(trial, name)
            trial.left()
            lost = self.lose(trial, log, before)
            self.counts[f"{name} files lost"] += lost
            self.check(trial, name)
            before = {p: _state(p) for p in _files(trial.folder)}
        trial.faults = {}

    def lose(self, trial: Trial, log: Path, before: Mapping[Path, tuple[int, ...]]) -> int:
        """Take back what was not flushed: the names of files stay, as a journal keeps them."""
        last: dict[int, str] = {}
        for line in log.read_text().splitlines() if log.exists() else ():
            what, _, inode = line.partition(" ")
            last[int(inode)] = what
        n_lost, how = 0, self.rng.choice(("zeros", "half", "nothing"))
        for path in _files(trial.folder):
            state = _state(path)
            dirty = last.get(state[0], "") == "W" or (
                state[0] not in last and before.get(path) != state and state[1]
            )
            if not dirty or path.name.endswith(".lock"):
                continue
            size = state[1]
            path.chmod(0o644)
            with path.open("r+b") as file:
                if how == "zeros":
                    file.write(bytes(size))
                else:
                    file.truncate(size // 2 if how == "half" else 0)
            n_lost += 1
        return n_lost

    def full(self, trial: Trial, name: str) -> None:
        """No space from the n-th write on, which is drawn."""
        self.full_at(trial, name, self.rng.randrange(1, (self.counts[f"{name} writes"] or 400) + 1))

    def every(self, trial: Trial, name: str) -> None:
        """No space from the n-th write on, for the next n."""
        trial.server = self.server
        self.next_full[name] += self.step
        if self.full_at(trial, name, self.next_full[name]):
            self.done.add(("every", name))
        self.counts[f"every {name}: last n"] = self.next_full[name]

    @functools.cached_property
    def server(self) -> "subprocess.Popen[str]":
        """Return a program that runs trials: most of a short run is its imports."""
        env = {**os.environ, "LD_PRELOAD": str(self.library), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-P", "-c", RUNNER + SERVER], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**env, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def full_at(self, trial: Trial, name: str, n: int) -> bool:
        """No space from the n-th write on; return whether there was no n-th."""
        log = self.work / "faults.log"
        log.unlink(missing_ok=True)
        counter = log.with_name("faults.log.count")
        counter.unlink(missing_ok=True)
        trial.faults = {"LD_PRELOAD": str(self.library), "FAULTS_LOG": str(log),
                        "FAULTS_DIR": str(trial.folder), "FAULTS_FULL": str(n)}  # fmt: skip
        status, said = trial.run()
        trial.faults = {}
        written = int.from_bytes(counter.read_bytes(), "little")
        if status == 0 and written < n:
            self.counts[f"{name} writes"] = written
        elif status == 0:
            self.counts[f"{name} full, no harm"] += 1
        elif "bug:" in said or "Traceback" in said:
            self.fail(trial, name, f"write {n}: {said}")
        elif "the disk is full" not in said:
            self.fail(trial, name, f"write {n}, another reason: {said}")
        self.check(trial, name)
        return status == 0 and written < n

    def twice(self, trial: Trial, name: str) -> None:
        """Two runs at once."""
        first, second = trial.start(), trial.start()
        kills = self.rng.random() < 0.5
        if kills:
            time.sleep(self.rng.uniform(0.3, self.seconds[name]))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(first.pid, signal.SIGKILL)
        for process in (first, second):
            _, said = process.communicate(timeout=600)
            busy = "is running this study" in said
            if process.returncode and not busy and not (kills and process is first):
                self.fail(trial, name, said)
        self.check(trial, name)

    def clock(self, trial: Trial, name: str) -> None:
        """A clock that jumps."""
        years = self.rng.choice((-30, -1, 1, 20))
        trial.faults = {"LD_PRELOAD": str(self.library), "FAULTS_AFTER": self.rng.choice("013"),
                        "FAULTS_CLOCK": str(years * 31_557_600)}  # fmt: skip
        status, said = trial.run()
        if status:
            self.fail(trial, name, said)
        if trial.outputs() != self.whole[name]:
            self.fail(trial, name, f"other bytes with the clock {years} years off")
        trial.faults = {}

    def gone(self, trial: Trial, name: str) -> None:
        """The store is removed."""
        process = trial.start()
        time.sleep(self.rng.uniform(0.3, self.seconds[name]))
        for path in (trial.folder / "store").iterdir():
            if not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
        _, said = process.communicate(timeout=600)
        if "bug:" in said or "Traceback" in said:
            self.fail(trial, name, said)
        self.counts[f"{name} ended in spite of it"] += process.returncode == 0

    def workers(self, trial: Trial, name: str) -> None:
        """Workers of a cluster that are killed, with the study on it left alone."""

        def env_of(store: Path) -> dict[str, str]:
            store.mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                (store / "toolchain").symlink_to(self.work / "toolchain")
            return trial.env(store)

        workers = self.whole_study.Workers(trial.folder, env_of, PROGRAM)
        workers.start("a", "b", "c")
        process = trial.start("--cluster", str(workers.file))
        said = io.StringIO()
        threading.Thread(target=lambda: said.writelines(process.stderr or ()), daemon=True).start()
        n_left = self.rng.randrange(4, 9)  # then it can come to an end
        while process.poll() is None and n_left:
            time.sleep(self.rng.uniform(0.05, 0.3) * self.seconds[name])
            killed = workers.kill(self.rng.choice("abc"), self.rng)
            self.counts["workers SIGKILLs"] += killed
            n_left -= killed
        process.wait()
        workers.stop()
        if process.returncode:
            self.fail(trial, name, said.getvalue())
        elif trial.outputs() != self.whole[name]:
            self.fail(trial, name, "other bytes on a cluster")
        self.check(trial, name)

    def check(self, trial: Trial, name: str) -> None:
        """Look at what a fault has left."""
        if left := trial.left():
            self.fail(trial, name, f"still running: {left}")
        if wrong := trial.broken(self.whole[name]):
            self.fail(trial, name, f"half: {wrong}")

    def fail(self, trial: Trial, name: str, why: str) -> None:
        """Keep what went wrong, and the folder it went wrong in."""
        n = len(self.failures)
        kept = self.work / f"failure-{n}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(trial.folder, kept, symlinks=True, ignore_dangling_symlinks=True)
        why = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", why)[-1500:]
        self.failures.append(f"{name}: {why}")
        print(f"FAILURE {n} {name}: {why}", flush=True)

    def once(self, fault: str, name: str) -> None:
        """Put one fault into one command, then run it to its end."""
        trial = self.trial(name)
        n = len(self.failures)
        put: Callable[[Trial, str], None] = getattr(self, fault)
        put(trial, name)
        status, said = trial.run()
        if status:
            self.fail(trial, name, f"after {fault}: {said}")
        elif trial.outputs() != self.whole[name]:
            whole, found = self.whole[name], trial.outputs()
            differing = {k for k in {**whole, **found} if whole.get(k) != found.get(k)}
            self.fail(trial, name, f"other bytes after {fault}: {sorted(differing)}")
        self.check(trial, name)
        self.counts[f"{fault} {name}"] += 1
        self.counts[f"{fault} failed"] += len(self.failures) > n


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]


def _state(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def main() -> int:
    """Put faults into commands in turn until the time is over; print what was done."""
    faults = ("kill", "power", "full", "twice", "clock", "gone", "workers", "every")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("faults", nargs="*", help=f"of {' '.join(faults)}; all")
    parser.add_argument("--only", default=",".join(COMMANDS), help="commands, separated by commas")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="the first n of `every`")
    parser.add_argument("--step", type=int, default=1, help="from one n of `every` to the next")
    parser.add_argument("--work", type=Path, default=Path("/tmp/imatrix-lab-kills"))
    options = parser.parse_args()
    campaign = Campaign(options.work, options.seed, options.step)
    names = options.only.split(",")
    campaign.prepare(names)
    for name in names:
        campaign.undisturbed(name)
        campaign.next_full[name] = options.first - options.step
    until = time.monotonic() + 60 * options.minutes
    while time.monotonic() < until:
        for fault in options.faults or faults[:-1]:
            for name in names if fault != "workers" else {"study"}.intersection(names):
                if time.monotonic() < until and (fault, name) not in campaign.done:
                    campaign.once(fault, name)
        if options.faults and campaign.done >= {(f, n) for f in options.faults for n in names}:
            break
    print(json.dumps(dict(sorted(campaign.counts.items())), indent=1))
    print(f"{len(campaign.failures)} failures")
    return min(1, len(campaign.failures))


if __name__ == "__main__":
    sys.exit(main())
