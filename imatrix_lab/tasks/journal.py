"""What is done already: one JSON object a line, on disk before the next item is asked.

A killed run loses nothing that was answered; a line that was cut off is dropped. Threads may add.
"""

import dataclasses
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imatrix_lab.core.files import disk_error


class Journal:
    """A file of objects by id (`entries`); a later one replaces an earlier one of its id.

    Parameters
    ----------
    record : dataclass whose fields every object has.
    """

    def __init__(self, path: Path, record: type):
        self._path, self._lock = path, threading.Lock()
        self.entries: dict[str, dict[str, Any]] = {}
        fields = {field.name for field in dataclasses.fields(record)}
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.split("\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            if isinstance(entry, dict) and fields <= entry.keys():
                self.entries[str(entry["id"])] = entry

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        """Return what adds an object."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", errors="replace", newline="\n")
            if self._path.stat().st_size:
                self._file.write("\n")  # after a line that was cut off
        except OSError as error:
            raise disk_error(error, self._path) from error
        return self._add

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def _add(self, entry: dict[str, Any]) -> None:
        with self._lock:
            try:
                self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise disk_error(error, self._path) from error
            self.entries[str(entry["id"])] = entry

    def remove(self) -> None:
        """Delete the file: its objects are elsewhere, whole."""
        self._path.unlink(missing_ok=True)
