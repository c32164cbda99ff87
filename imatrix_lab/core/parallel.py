"""Slow calls in parallel: requests to a server, which mostly wait."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(call: Callable[[Item], Result], items: Iterable[Item], parallel: int) -> Iterator[Result]:
    """Yield the result for each item as it comes, `parallel` calls at a time.

    Leaving the iterator starts no more calls, and does not wait for those under way, so that
    Ctrl-C need not wait for an answer that takes minutes. What a call raises is raised here.
    """
    todo = ((item,) for item in items)
    results = queue.SimpleQueue[tuple[Result] | BaseException | None]()
    lock, left = threading.Lock(), threading.Event()

    def work() -> None:
        try:
            while not left.is_set():
                with lock:
                    item = next(todo, None)
                if item is None:
                    break
                results.put((call(item[0]),))
        except BaseException as error:
            results.put(error)
        results.put(None)

    for _ in range(parallel):
        threading.Thread(target=work, daemon=True).start()
    try:
        while parallel:
            result = results.get()
            if result is None:
                parallel -= 1
            elif isinstance(result, BaseException):
                raise result
            else:
                yield result[0]
    finally:
        left.set()
