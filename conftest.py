"""Tests side by side: `pytest -n auto` takes a worker for each processor that it may use.

Each keeps to a processor of its own, and what it starts does too: threads of llama.cpp wait for
each other in a spin, so that runs which share their processors take many times as long.
"""

import os

import pytest


def _processors() -> list[int]:
    """Return those that this process may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and (usable := _processors()):
    # before numpy is loaded, which starts a thread for each processor
    os.sched_setaffinity(0, {usable[int(worker.removeprefix("gw")) % len(usable)]})


@pytest.hookimpl(optionalhook=True)  # pytest-xdist need not be there
def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers `-n auto` starts."""
    return len(_processors()) or os.cpu_count() or 1
