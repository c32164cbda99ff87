"""Slow calls side by side: requests to a server, each of which mostly waits."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Asked = TypeVar("Asked")
Found = TypeVar("Found")


def each(call: Callable[[Asked], Found], items: Iterable[Asked], parallel: int) -> Iterator[Found]:
    """Yield what a call returns for each item, as they end, so many at a time.

    Leaving the iterator begins no more; what is under way is not waited for, so that Ctrl-C need
    not wait for an answer that takes minutes. What a call raises is raised here.
    """
    todo = ((item,) for item in items)
    done = queue.SimpleQueue[tuple[Found] | BaseException | None]()
    lock, left = threading.Lock(), threading.Event()

    def work() -> None:
        try:
            while not left.is_set():
                with lock:
                    found = next(todo, None)
                if found is None:
                    break
                done.put((call(found[0]),))
        except BaseException as error:
            done.put(error)
        done.put(None)

    for _ in range(parallel):
        threading.Thread(target=work, daemon=True).start()
    working = parallel
    try:
        while working:
            found = done.get()
            if found is None:
                working -= 1
            elif isinstance(found, BaseException):
                raise found
            else:
                yield found[0]
    finally:
        left.set()
