"""Calls side by side: as they end, no more than asked for, errors passed on."""

import threading

import pytest

from imatrix_lab.core.parallel import each


def test_as_they_end():
    """The first waits for the second: one at a time would never end."""
    second = threading.Event()

    def call(name):
        if name == "first":
            assert second.wait(20)
        else:
            second.set()
        return name

    assert list(each(call, ["first", "second"], 2)) == ["second", "first"]


def test_what_is_nothing_is_an_item_too():
    assert list(each(lambda x: x, [None, 0, ()], 1)) == [None, 0, ()]
    assert list(each(str, [], 4)) == []


def test_leaving_begins_no_more():
    begun = []
    go = threading.Semaphore(1)

    def call(i):
        begun.append(i)
        assert go.acquire(timeout=20)
        return i

    found = each(call, range(100), 1)
    assert next(found) == 0
    found.close()
    go.release()
    assert begun in ([0], [0, 1])


def test_errors_are_raised_here():
    def broken(i):
        if i == 3:
            raise KeyError(i)
        return i

    with pytest.raises(KeyError):
        list(each(broken, range(9), 2))
