"""On the path of a process: it does not see the files and folders in ``$BLIND``."""

import os
import sys

HIDDEN = tuple(filter(None, os.environ.get("BLIND", "").split(":")))
EVENTS = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.link", "os.utime"}


def _look(event, arguments):
    if event in EVENTS and isinstance(arguments[0], (str, bytes)):
        _check(arguments[0])


def _check(path):
    path = os.fsdecode(path)
    if any(path == hidden or path.startswith(hidden + os.sep) for hidden in HIDDEN):
        raise FileNotFoundError(2, "hidden", path)


def _checking(function):
    def checked(path, *args, **kwargs):
        if not isinstance(path, int):
            _check(path)
        return function(path, *args, **kwargs)

    return checked


if HIDDEN:
    sys.addaudithook(_look)
    os.stat, os.lstat = _checking(os.stat), _checking(os.lstat)  # which no hook hears of
