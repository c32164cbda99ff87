"""Speed and time left; what a relay passes on."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from imatrix_lab.core.progress import Meter, Relay, Silent, Task

Clock = Callable[[float], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A function that sets the time."""
    now = [0.0]
    monkeypatch.setattr("imatrix_lab.core.progress.time.monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_speed_and_time_left(clock: Clock) -> None:
    meter = Meter("imatrix", 1000, "tokens")
    clock(0.1)
    meter.update(50)
    assert meter.per_s() == 0 and math.isnan(meter.left_s())  # too early to tell
    clock(10)
    meter.update(100)
    assert (meter.share(), meter.per_s(), meter.left_s()) == (0.1, 10, 90)


def test_what_an_earlier_run_did_is_no_speed(clock: Clock) -> None:
    meter = Meter("imatrix", 1000, "tokens")
    meter.update(500, "continuing")
    clock(10)
    meter.update(600, "a note later on changes nothing")
    assert (meter.base, meter.per_s(), meter.left_s()) == (500, 10, 40)


def test_a_step_of_nothing_is_done() -> None:
    assert Meter("nothing", 0, "").share() == 1


class Recorder(Silent):
    """Keeps what reaches it."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def say(self, message: str) -> None:
        self.heard.append(message)

    def task(self, name: str, total: float, unit: str) -> AbstractContextManager[Meter]:
        self.heard.append((name, total, unit))
        return super().task(name, total, unit)


class Titled(Relay):
    """A relay with every hook."""

    def __init__(self, inner: Recorder) -> None:
        super().__init__(inner)
        self.log: list[object] = []

    def title(self, name: str) -> str:
        return f"step: {name}"

    def updated(self, meter: Meter, note: str) -> None:
        self.log.append((meter.name, meter.done, note))

    def finished(self, meter: Meter) -> None:
        self.log.append("finished")


def test_a_relay_passes_on_and_tells_its_hooks() -> None:
    inner = Recorder()
    relay = Titled(inner)
    relay.say("hello")
    task: Task
    with relay.task("score", 10, "tokens") as task:
        task.update(4, "half")
    assert inner.heard == ["hello", ("step: score", 10, "tokens")]
    assert relay.log == [("score", 4, "half"), "finished"]


def test_a_step_that_fails_is_not_finished() -> None:
    relay = Titled(Recorder())
    with pytest.raises(ZeroDivisionError), relay.task("score", 10, "tokens"):
        _ = 1 // 0
    assert relay.log == []
