"""Which machine would do what, and when: a study on a cluster, played through without computing.

As on the cluster: what can run is given out at once, in the order of the steps, to the machine that
is free first, which takes one large step at a time.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Seconds = Callable[[str, str], float]
"""``seconds(step, machine)``."""


@dataclass(frozen=True)
class Task:
    """A step of a plan: what it waits for, the bytes it makes, and the memory it takes."""

    id: str
    what: str
    waits_for: tuple[str, ...] = ()
    made_bytes: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True)
class Placed:
    """A step on its machine, in seconds from the start.

    `because` is the step without which it would have begun earlier: one it waits for, or the one
    before it on the machine; "" at the start. `fetched_bytes` were made by other machines.
    """

    id: str
    what: str
    machine: str
    begins_s: float
    ends_s: float
    because: str
    fetched_bytes: int


@dataclass(frozen=True)
class Placement:
    """A study played through, in the order in which steps end."""

    steps: tuple[Placed, ...]

    @property
    def seconds(self) -> float:
        """How long all of it takes."""
        return max((step.ends_s for step in self.steps), default=0.0)

    def busy_s(self) -> dict[str, float]:
        """Return how long each machine works."""
        busy: dict[str, float] = {}
        for step in self.steps:
            busy[step.machine] = busy.get(step.machine, 0.0) + step.ends_s - step.begins_s
        return busy

    def fetched_bytes(self) -> int:
        """Return the bytes that machines read of what others made."""
        return sum(step.fetched_bytes for step in self.steps)

    def chain(self) -> list[Placed]:
        """Return the steps that decide how long it takes, each begun when the one before ended."""
        by_id = {step.id: step for step in self.steps}
        chain: list[Placed] = []
        name = max(self.steps, key=lambda step: step.ends_s).id if self.steps else ""
        while name:
            chain.append(by_id[name])
            name = chain[-1].because
        return chain[::-1]


def place(tasks: Sequence[Task], machines: Mapping[str, int], seconds: Seconds) -> Placement:
    """Play steps through on machines, given with their memory in bytes.

    A step that fits nowhere runs on the machine with most memory.
    """
    most = max(machines.values())
    free: dict[str, tuple[float, str]] = dict.fromkeys(machines, (0.0, ""))
    placed: dict[str, Placed] = {}
    waiting = list(tasks)
    ready: list[tuple[float, int, Task]] = []
    order = {task.id: i for i, task in enumerate(tasks)}
    made = {task.id: task.made_bytes for task in tasks}
    while waiting or ready:
        for task in [t for t in waiting if all(n in placed for n in t.waits_for)]:
            waiting.remove(task)
            at = max((placed[n].ends_s for n in task.waits_for), default=0.0)
            heapq.heappush(ready, (at, order[task.id], task))
        at, _, task = heapq.heappop(ready)
        needed = min(task.memory_bytes, most)
        fitting = [name for name, memory in machines.items() if memory >= needed]

        def ends_s(name: str, task: Task = task, at: float = at) -> float:
            return max(at, free[name][0]) + seconds(task.id, name)

        machine = min(fitting, key=ends_s)
        begins, because = free[machine]
        last = max(task.waits_for, key=lambda n: placed[n].ends_s, default="")
        if last and placed[last].ends_s >= begins:
            begins, because = placed[last].ends_s, last
        fetched = [n for n in task.waits_for if placed[n].machine != machine]
        placed[task.id] = Placed(
            task.id,
            task.what,
            machine,
            begins,
            begins + seconds(task.id, machine),
            because,
            sum(made[n] for n in fetched),
        )
        free[machine] = (placed[task.id].ends_s, task.id)
    return Placement(tuple(sorted(placed.values(), key=lambda step: step.ends_s)))
