"""Which steps have to run, how they run side by side, and how they stop."""

import ctypes
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imatrix_lab.core import interrupt, process
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.store import Store, default_root
from imatrix_lab.errors import BadText
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.records import parquet
from imatrix_lab.report.results import Missing
from imatrix_lab.study.graph import FILES, Step, StepRecord, Turn, finished, keys, to_run
from imatrix_lab.study.scheduler import Capacity, Scheduler

CAPACITY = Capacity(4, 4, 100)


class Seen:
    """Hears what happens."""

    def __init__(self):
        self.events: list[tuple[str, str]] = []
        self.threads: dict[str, int] = {}

    def progress(self, step):
        return Silent()

    def began(self, step, threads):
        self.events.append(("began", step.id))
        self.threads[step.id] = threads

    def ended(self, step, outcome):
        word = {StepRecord: "done", Missing: "failed"}.get(type(outcome), "left")
        self.events.append((word, step.id))

    def of(self, word):
        return [name for what, name in self.events if what == word]


class Bench:
    """Records that are kept from run to run, and files that steps make."""

    def __init__(self, folder):
        self.folder, self.records, self.ran = folder, {}, []

    def step(self, name, does: Callable[[Turn], object] | None = None, **rest) -> Step:
        """A step that makes a file with the names of what it was given."""

        def run(turn: Turn):
            self.ran.append(name)
            if does:
                does(turn)
            words = [
                *turn.before.get("words", ()),
                *(n for n in turn.results if n not in ("text", *turn.parts)),
            ]
            (self.folder / name).write_text(" ".join(words))
            return {"words": words, FILES: [str(self.folder / name)]}

        return Step(name, "kind", name, run, **rest)

    def run(self, steps, capacity=CAPACITY, seen=None):
        self.ran.clear()
        watch = seen or Seen()
        return Scheduler(
            steps, self.records, capacity, watch, self.records.__setitem__, self.folder / "logs"
        ).run()


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def chain(bench, **quants):
    """A text, quants that use it, a score of those that are there, and tidying."""

    def remove(turn):
        for name in quants:
            (bench.folder / name).unlink(missing_ok=True)

    made = [bench.step(name, does, needs=("text",)) for name, does in quants.items()]
    tidy = Step("tidy", "tidy", "tidy", lambda turn: remove(turn) or {},
                after=("score", *quants), is_cleanup=True)  # fmt: skip
    score = bench.step("score", needs=("text",), uses=tuple(quants), is_target=True)
    return [bench.step("text"), *made, score, tidy]


def fail(turn):
    raise BadText("no such text", fix="write one")


def test_what_is_done_is_not_done_again_though_its_file_is_gone(bench):
    steps = chain(bench, a=None, b=None)
    outcome = bench.run(steps)
    assert bench.ran[0] == "text" and bench.ran[-1] == "score" and set(bench.ran[1:3]) == {"a", "b"}
    assert not (bench.folder / "a").exists() and not outcome.missing
    assert set(outcome.records) == {"text", "a", "b", "score", "tidy"}
    bench.run(steps)
    assert bench.ran == []
    (bench.folder / "score").unlink()  # then all that it needs is made again, and tidied again
    bench.run(steps)
    assert sorted(bench.ran) == ["a", "b", "score"]
    assert not (bench.folder / "a").exists()


def test_a_failure_stops_what_needs_it_and_what_comes_late_is_added(bench):
    seen = Seen()
    outcome = bench.run(chain(bench, a=fail, b=None), seen=seen)
    assert outcome.records["score"].result["words"] == ["b"]
    (failure,) = outcome.missing
    assert (failure.step, failure.why, failure.fix) == ("a", "no such text", "write one")
    assert failure.left_out == () and seen.of("failed") == ["a"]
    bench.run(chain(bench, a=None, b=None))
    assert bench.ran == ["a", "score"]  # b is gone, and not needed again
    assert bench.records["score"].result["words"] == ["b", "a"]
    assert bench.records["score"].parts == ("a", "b")


def test_what_a_part_could_not_do_is_not_missing(bench):
    """The step did it; and what the step lacks is told once."""

    def parts(**quants):
        text, *made, score, tidy = chain(bench, **quants)
        own = [bench.step(f"part {q}", fail if q == "a" else None, needs=("text",), uses=(q,),
                          is_target=True, part_of="score") for q in quants]  # fmt: skip
        score = dataclasses.replace(score, after=tuple(part.id for part in own))
        return [text, *made, *own, score, tidy]

    outcome = bench.run(parts(a=None, b=None))
    assert bench.ran[-1] == "score" and "part b" in bench.ran
    assert not outcome.missing and outcome.records["score"].parts == ("a", "b")
    bench.records.clear()
    outcome = bench.run(parts(a=fail, b=fail))
    assert {m.step: m.left_out for m in outcome.missing} == {"a": ("score",), "b": ("score",)}


def test_a_step_that_fails_again_leaves_what_was_scored_as_it_was(bench):
    bench.run(chain(bench, a=fail, b=None))
    outcome = bench.run(chain(bench, a=fail, b=None))
    assert bench.ran == ["a"] and [m.step for m in outcome.missing] == ["a"]
    assert outcome.records["score"].parts == ("b",)


def test_everything_that_stands_on_a_failure_is_left_out(bench):
    seen = Seen()
    steps = chain(bench, a=fail, b=fail)
    steps.insert(-1, bench.step("report", needs=("score",), is_target=True))
    outcome = bench.run(steps, seen=seen)
    assert seen.of("left") == ["score", "report"]
    assert {m.step: m.left_out for m in outcome.missing} == {
        "a": ("score", "report"), "b": ("score", "report"),
    }  # fmt: skip
    assert set(outcome.records) == {"text", "tidy"}


def test_nothing_is_made_again_for_steps_that_cannot_run(bench):
    """Quants that were scored and removed, whose benchmark's items cannot be had."""

    def steps(items):
        quant = bench.step("quant")
        score = bench.step("score", needs=("quant",), is_target=True)
        answers = bench.step("answers", needs=("items", "quant"), is_target=True)
        return [bench.step("items", items), quant, score, answers]

    outcome = bench.run(steps(fail), Capacity(1, 1, 100))
    assert [m.left_out for m in outcome.missing] == [("answers",)] and bench.ran[-1] == "score"
    (bench.folder / "quant").unlink()
    bench.run(steps(fail), Capacity(1, 1, 100))
    assert bench.ran == ["items"]
    bench.run(steps(None), Capacity(1, 1, 100))
    assert bench.ran == ["items", "quant", "answers"]


def test_a_bug_is_a_failure_with_its_traceback_in_a_log(bench):
    outcome = bench.run([bench.step("x", lambda turn: 1 / 0, is_target=True)])
    assert outcome.missing[0].why.startswith("a bug: ZeroDivisionError")
    assert "1 / 0" in (bench.folder / "logs" / "x.log").read_text()


@pytest.mark.parametrize("use", [Path.open, lambda path: parquet.write(path, {}, {})])
def test_a_store_that_is_removed_under_a_step_is_no_bug(bench, use):
    """pyarrow does not name the file."""

    def gone(turn):
        use(default_root() / "work" / "quant-0" / "part.gguf")

    (missing,) = bench.run([bench.step("x", gone, is_target=True)]).missing
    assert "removed while it was used" in missing.why and str(default_root()) in missing.why
    assert not (bench.folder / "logs").exists()


def test_another_input_runs_all_that_stands_on_it(bench):
    steps = [bench.step("a", inputs={"n": 1}), bench.step("b", needs=("a",), is_target=True)]
    bench.run(steps)
    changed = [bench.step("a", inputs={"n": 2}), steps[1]]
    assert keys(steps)["b"] != keys(changed)["b"]
    assert finished(changed, bench.records) == {}
    assert [s.id for s in to_run(changed, {})] == ["a", "b"]
    bench.run(changed)
    assert bench.ran == ["a", "b"]


def test_steps_run_side_by_side_within_jobs_and_cores(bench):
    """Two are there at a time: each waits for the other."""
    pair = threading.Barrier(2, timeout=20)
    seen = Seen()
    steps = [bench.step(n, lambda turn: pair.wait(), is_target=True, cores=8) for n in "abcd"]
    bench.run(steps, Capacity(2, 4, 100), seen)
    assert seen.threads == dict.fromkeys("abcd", 2)


@pytest.mark.parametrize(
    ("capacity", "memory"),
    [(Capacity(1, 4, 100), 0), (Capacity(4, 4, 100), 60), (Capacity(4, 1, 100), 0)],
)
def test_one_at_a_time_where_more_do_not_fit(bench, capacity, memory):
    at_once, most, lock = 0, 0, threading.Lock()

    def count(turn):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1

    steps = [bench.step(n, count, is_target=True, memory_bytes=memory, cores=9) for n in "abc"]
    seen = Seen()
    bench.run(steps, capacity, seen)
    assert most == 1 and set(seen.threads.values()) == {capacity.cores}


def test_one_that_never_fits_runs_alone(bench):
    steps = [bench.step(n, is_target=True, memory_bytes=1000) for n in "ab"]
    assert set(bench.run(steps).records) == {"a", "b"}


def test_threads_as_asked(bench):
    seen = Seen()
    bench.run([bench.step(n, is_target=True, cores=9) for n in "ab"], Capacity(2, 4, 9, 3), seen)
    assert set(seen.threads.values()) == {3}


# -- stopping


def sleeping_program(folder):
    return lambda turn: process.run(["sleep", "1234"], log=folder / "sleep.log")


def locked(folder):
    def wait(turn):
        with Store(folder / "store").lock("x", Silent()):
            pass

    return wait


def native(folder):
    """A native call that ends when its flag is set, as llama_decode does."""

    def call(turn):
        interruptible = Interruptible()

        def decode():
            while not interruptible.flag.value:
                ctypes.CDLL(None).usleep(1000)

        interruptible(decode)

    return call


def reporting(folder):
    def loop(turn):
        while True:
            interrupt.check()
            time.sleep(0.01)

    return loop


@pytest.mark.parametrize("kind", [sleeping_program, locked, native, reporting])
def test_ctrl_c_reaches_every_running_step(bench, tmp_path, kind):
    steps = [bench.step(n, kind(tmp_path), is_target=True) for n in "ab"]
    before = set(threading.enumerate())
    with Store(tmp_path / "store").lock("x", Silent()):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            bench.run(steps, seen=Seen())
    assert sorted(bench.ran) == ["a", "b"] and not bench.records
    left = {t.name for t in set(threading.enumerate()) - before}
    assert not left & {"a", "b"}
    programs = process.run(["ps", "-o", "args", "--ppid", str(os.getpid())], check=False).tail
    assert "sleep 1234" not in programs


def test_what_was_done_when_it_was_stopped_is_kept(bench, tmp_path):
    steps = [
        bench.step("quick", is_target=True),
        bench.step("slow", reporting(tmp_path), is_target=True),
    ]
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        bench.run(steps)
    assert set(bench.records) == {"quick"}
