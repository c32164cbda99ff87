"""On the path of a process: it does not see the files and folders in ``$BLIND``."""

import os
import sys

HIDDEN = tuple(filter(None, os.environ.get("BLIND", "").split(":")))
EVENTS = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.link", "os.utime"}


def _look(event, arguments):
    if event in EVENTS and isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        if any(path == hidden or path.startswith(hidden + os.sep) for hidden in HIDDEN):
            raise FileNotFoundError(2, "hidden", path)


if HIDDEN:
    sys.addaudithook(_look)
