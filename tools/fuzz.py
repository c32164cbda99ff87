"""Change honest files by chance and read them: one clear error or the same numbers are allowed.

    make fuzz FLAGS="--inputs 500"                every format
    python tools/fuzz.py gguf dat --inputs 20000 --seed 3 --minutes 8

The same seed gives the same inputs. Each is read in process, as the command that takes such a file
reads it. What counts as a finding: an exception that is not an `ImatrixLabError`, a crash, more
than 10 s of the processor, more than 1 GiB beside the honest file, a file written outside of the
input's folder, and, for formats with checksums, other numbers. Findings stay in ``--work``, each
with what repeats it.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_targets
from fuzz_inputs import changed_bytes, changed_value
from fuzz_targets import Case, Target

from imatrix_lab.core.files import disk_error
from imatrix_lab.errors import ImatrixLabError

HANG_S = 10
MORE_BYTES = 1 << 30
BATCH = 250
"""Inputs of one process: a crash ends no more than these."""
_TIMERS = (
    (signal.SIGPROF, signal.ITIMER_PROF, HANG_S),  # of the processor: a busy machine is no hang
    (signal.SIGALRM, signal.ITIMER_REAL, 12 * HANG_S),
)
_WRITES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.chmod",
           "os.truncate", "os.chown"}  # fmt: skip


class Hang(BaseException):
    """An input took too long."""


# -- one input


@dataclass(frozen=True)
class Outcome:
    """What came of an input: ``refused``, ``same``, ``other``, or a finding, with its details."""

    kind: str
    details: str = ""


def digest(numbers: Any) -> str:
    """Return a hash of everything that was read."""
    return hashlib.sha256(pickle.dumps(numbers, protocol=4)).hexdigest()


class Watch:
    """Notes what is written outside of a folder; an audit hook cannot be taken away again."""

    def __init__(self, folder: Path):
        self.folder, self.seen = folder.resolve(), list[str]()
        sys.addaudithook(self.heard)

    def heard(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an event of the audit."""
        if event == "open":
            path, mode, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else 0
            if not writes and not (isinstance(mode, str) and set(mode) & set("wax+")):
                return
        elif event in _WRITES:
            path = args[1] if event in ("os.rename", "os.symlink", "os.link") else args[0]
        else:
            return
        if isinstance(path, str | bytes | os.PathLike):
            # where the name stands, not what it leads to
            place = Path(os.fsdecode(path)).absolute()
            place = place.parent.resolve() / place.name
            if not place.is_relative_to(self.folder) and place.parts[1:2] != ("dev",):
                self.seen.append(f"{event} {place}")


def tried(target: Target, path: Path, honest: set[str], strict: bool, watch: Watch) -> Outcome:
    """Read one input."""
    watch.seen.clear()

    def late(*_: object) -> None:
        raise Hang

    for signum, timer, seconds in _TIMERS:
        signal.signal(signum, late)
        signal.setitimer(timer, seconds)
    try:
        numbers = digest(target.read(path))
        outcome = Outcome("same" if numbers in honest else "other")
    except ImatrixLabError as error:
        outcome = Outcome("refused", type(error).__name__)
    except OSError as error:  # as the command line does
        told = disk_error(error, path)
        kind = "refused" if isinstance(told, ImatrixLabError) else "TRACEBACK"
        outcome = Outcome(kind, traceback.format_exc())
    except Hang:
        outcome = Outcome("HANG", traceback.format_exc())
    except MemoryError:
        outcome = Outcome("MEMORY", traceback.format_exc())
    except Exception:
        outcome = Outcome("TRACEBACK", traceback.format_exc())
    finally:
        for _, timer, _ in _TIMERS:
            signal.setitimer(timer, 0)
    if watch.seen:
        outcome = Outcome("OUTSIDE", "\n".join(watch.seen))
    if strict and outcome.kind == "other":
        outcome = Outcome("OTHER NUMBERS")
    return outcome


def batch(target: Target, seed: int, numbers: range, work: Path) -> Iterator[tuple[int, Outcome]]:
    """Try some inputs in a process of their own, and yield what came of each."""
    folder = work / target.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        status = 1
        try:
            with os.fdopen(writing, "wb", buffering=0) as out:
                _in_child(target, seed, numbers, folder, out.write)
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    os.close(writing)
    n = 0
    with os.fdopen(reading, "rb") as lines:
        for n, line in enumerate(lines, 1):
            yield numbers[n - 1], Outcome(*json.loads(line))
    _, status = os.waitpid(child, 0)
    if status and not n and os.WIFEXITED(status):
        raise SystemExit(f"{target.name}: {(folder / 'printed').read_text(errors='replace')}")
    if status and n < len(numbers):
        yield numbers[n], Outcome("CRASH", f"signal {os.WTERMSIG(status)}")


def _in_child(
    target: Target, seed: int, numbers: range, folder: Path, write: Callable[[bytes], Any]
) -> None:
    os.environ |= {"TMPDIR": str(folder), "HOME": str(folder), "IMATRIX_LAB_CACHE": str(folder)}
    os.environ |= {"HF_HOME": str(folder), "IMATRIX_LAB_DATA": str(folder)}
    os.chdir(folder)
    with (folder / "printed").open("wb") as sink:
        for stream in (1, 2):
            os.dup2(sink.fileno(), stream)
    cases = target.honest(folder / "honest")
    (folder / "inputs").mkdir()
    own = {digest(target.read(copied(case, folder))) for case in cases}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch(folder)
    everything = [case.path.read_bytes() for case in cases]
    for number in numbers:
        rng = random.Random(f"{target.name} {seed} {number}")
        case = rng.choice(cases)
        try:
            path, strict = changed(case, rng, everything, folder)
        except (RecursionError, ValueError, OverflowError):  # no file can say this
            write(b'["unwritable", ""]\n')
            continue
        # a change that is none reads as before; what other honest files say is no less honest
        outcome = tried(target, path, own, strict and target.guarded, watch)
        write(json.dumps([outcome.kind, outcome.details]).encode() + b"\n")


def copied(case: Case, folder: Path) -> Path:
    """Return an honest file where the changed ones will be: some of what is read has its path."""
    return Path(shutil.copyfile(case.path, folder / "inputs" / case.path.name))


def changed(
    case: Case, rng: random.Random, others: Sequence[bytes], folder: Path
) -> tuple[Path, bool]:
    """Write an input beside its honest file; return it, and whether only bytes were changed."""
    path = folder / "inputs" / case.path.name
    if case.write and rng.random() >= case.share_of_bytes:
        case.write(path, changed_value(case.value, rng))
        return path, False
    path.write_bytes(changed_bytes(case.path.read_bytes(), rng, others))
    return path, True


def main() -> int:
    """Try inputs of the formats named, print a line for each format, and keep the findings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("formats", nargs="*", help=f"of {' '.join(fuzz_targets.ALL)}; all")
    parser.add_argument("--inputs", type=int, default=1000, help="of each format")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--work", type=Path, default=Path("/tmp/imatrix-lab-fuzz"))
    parser.add_argument("--only", type=int, help="one input, with its traceback")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    n_found = 0
    for name in options.formats or fuzz_targets.ALL:
        target = fuzz_targets.ALL[name]
        started, kinds, first = time.monotonic(), Counter[str](), options.first
        end = first + options.inputs
        if options.only is not None:
            first, end = options.only, options.only + 1
        while first < end and time.monotonic() < until:
            for number, outcome in batch(
                target, options.seed, range(first, min(end, first + BATCH)), options.work
            ):
                kinds[outcome.kind] += 1
                first = number + 1
                if outcome.kind.isupper():
                    n_found += keep(target, options, number, outcome)
        seconds = time.monotonic() - started
        print(
            f"{name}: {sum(kinds.values())} inputs, {dict(sorted(kinds.items()))}, {seconds:.0f} s",
            flush=True,
        )
    return min(n_found, 1)


def keep(target: Target, options: argparse.Namespace, number: int, outcome: Outcome) -> int:
    """Keep a finding of a kind not seen yet, named by where it was raised; return 1 if new."""
    lines = [line.strip() for line in outcome.details.splitlines()]
    places = [line for line in lines if line.startswith("File") and "imatrix_lab" in line]
    where = f"{places[-1] if places else ''} {lines[-1][:80] if lines else ''}"
    name = hashlib.sha256(f"{outcome.kind} {places[-1] if places else where}".encode()).hexdigest()[
        :8
    ]
    found = options.work / "findings" / f"{target.name}-{name}.txt"
    if found.exists():
        return 0
    found.parent.mkdir(parents=True, exist_ok=True)
    again = f"tools/fuzz.py {target.name} --seed {options.seed} --only {number}"
    found.write_text(f"{outcome.kind} {again}\n{outcome.details}")
    print(f"{target.name}: {outcome.kind} at input {number}: {where}", flush=True)
    return 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
