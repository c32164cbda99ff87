"""A study played through on machines: what comes first, who does what, what it waits for."""

from imatrix_lab.study.plan.placement import Task, place

ONE, TWO = {"a": 100}, {"a": 100, "b": 100}


def chain_and_pair():
    return [
        Task("text", "text"),
        Task("left", "left", ("text",), made_bytes=7),
        Task("right", "right", ("text",), made_bytes=5),
        Task("end", "end", ("left", "right")),
    ]


def test_on_one_machine_it_is_the_sum_and_on_two_the_longest_way():
    seconds = {"text": 1.0, "left": 10.0, "right": 4.0, "end": 2.0}
    alone = place(chain_and_pair(), ONE, lambda step, machine: seconds[step])
    assert alone.seconds == 17 and alone.fetched_bytes() == 0
    both = place(chain_and_pair(), TWO, lambda step, machine: seconds[step])
    assert both.seconds == 13 and sum(both.busy_s().values()) == 17
    assert [s.id for s in both.chain()] == ["text", "left", "end"]
    end = both.steps[-1]
    assert both.fetched_bytes() in (5, 7) and end.fetched_bytes == both.fetched_bytes()
    assert {s.machine for s in both.steps} == {"a", "b"}


def test_a_quicker_machine_gets_more():
    tasks = [Task(str(i), str(i)) for i in range(30)]
    placement = place(tasks, TWO, lambda step, machine: {"a": 1.0, "b": 4.0}[machine])
    n = {name: sum(s.machine == name for s in placement.steps) for name in TWO}
    assert n == {"a": 24, "b": 6} and placement.seconds == 24


def test_what_does_not_fit_runs_where_it_fits_or_on_the_largest():
    tasks = [Task("large", "large", memory_bytes=80), Task("huge", "huge", memory_bytes=500)]
    machines = {"small": 50, "big": 100}
    placement = place(tasks, machines, lambda step, machine: 1.0)
    assert [s.machine for s in placement.steps] == ["big", "big"]
    assert [s.because for s in placement.chain()] == ["", "large"]


def test_nothing_to_do():
    placement = place([], ONE, lambda step, machine: 1.0)
    assert placement.seconds == 0 and placement.chain() == []
