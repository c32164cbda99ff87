"""What is done already: one JSON object a line, on disk before the next item is asked.

A killed run loses nothing that was answered; a line that was cut off is dropped. Threads may add.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from imatrix_lab.core.files import disk_error, from_json
from imatrix_lab.core.outputs import any_file

Record = TypeVar("Record")


def other_than_journal(path: Path) -> str:
    """Return what a file is that has no journal's entries; for `outputs.check_file`."""
    with path.open("rb") as file:
        for line in itertools.islice(file, 3):  # the first may have been cut off
            with contextlib.suppress(ValueError):
                entry = from_json(line)
                if isinstance(entry, dict) and {"id", "error"} <= entry.keys():
                    return ""
    return any_file(path) if path.stat().st_size else ""


class Journal(Generic[Record]):
    """A file of dataclasses with `id` and `error`; a later one of an id replaces an earlier one.

    `others` are journals of parts of the same: they are read before it, and removed with it.
    """

    def __init__(self, path: Path, record_type: type[Record], others: Sequence[Path] = ()):
        self._path, self._type, self._lock = path, record_type, threading.Lock()
        self._others = [other for other in others if other != path]
        self._fields = [f.name for f in dataclasses.fields(record_type)]  # type: ignore[arg-type]
        self.entries: dict[str, dict[str, Any]] = {}
        for file in filter(Path.exists, (*self._others, path)):
            for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    entry = from_json(line)
                except ValueError:
                    continue  # cut off by a kill
                if isinstance(entry, dict) and entry.keys() >= set(self._fields):
                    self.entries[str(entry["id"])] = entry

    def get(self, name: str) -> Record | None:
        """Return the record of this id, unless it failed."""
        entry = self.entries.get(name)
        if not entry or entry["error"]:
            return None
        values = {name: entry[name] for name in self._fields}
        return self._type(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})

    def __enter__(self) -> "Journal[Record]":
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", errors="replace", newline="\n")
            if self._path.stat().st_size:
                self._file.write("\n")  # after a line that was cut off
        except OSError as error:
            raise disk_error(error, self._path) from error
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def add(self, record: Record, **more: Any) -> None:
        """Write a record, with further or other values."""
        entry = {**vars(record), **more}
        with self._lock:
            try:
                self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise disk_error(error, self._path) from error
            self.entries[str(entry["id"])] = entry

    def remove(self) -> None:
        """Delete the files: their records are elsewhere, whole."""
        for path in (self._path, *self._others):
            path.unlink(missing_ok=True)
