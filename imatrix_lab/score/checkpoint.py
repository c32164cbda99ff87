"""Rows of finished batches on disk, so that a kill loses at most one batch."""

import contextlib
import io
import os
import shutil
from pathlib import Path

import numpy as np

from imatrix_lab.core.files import replacing


class Checkpoint:
    """One file for each batch, complete or absent, in a folder that outlives a killed run.

    `sizes`: rows of each batch. `name`: kind of rows, where a folder holds several.
    """

    def __init__(self, folder: Path, sizes: list[int], name: str = "rows"):
        self._folder, self._sizes, self._name = folder, sizes, name
        self._done: set[int] = set()
        for batch, n_rows in enumerate(sizes):
            with contextlib.suppress(OSError, ValueError, EOFError):
                if len(self.rows(batch)) == n_rows:
                    self._done.add(batch)

    def path(self, batch: int) -> Path:
        """Return the file of a batch."""
        return self._folder / f"{self._name}-{batch:06d}.npy"

    def has(self, batch: int) -> bool:
        """Return whether a batch is complete."""
        return batch in self._done

    def add(self, batch: int, rows: np.ndarray) -> None:
        """Write the rows of a batch."""
        assert len(rows) == self._sizes[batch]
        content = io.BytesIO()
        np.save(content, rows)
        with replacing(self.path(batch)) as temporary:
            temporary.write_bytes(content.getbuffer())  # numpy does not say that a disk is full
        self._done.add(batch)

    def rows(self, batch: int) -> np.ndarray:
        """Return the rows of a batch, mapped from disk."""
        rows: np.ndarray = np.load(self.path(batch), mmap_mode="r")
        return rows

    def all(self) -> np.ndarray:
        """Return the rows of all batches in order; there is at least one batch."""
        return np.concatenate([self.rows(i) for i in range(len(self._sizes))])

    def hand_over(self, out: Path) -> None:
        """Put every file into `out` as well, by a link where the disk allows."""
        for i in range(len(self._sizes)):
            target = out / self.path(i).name
            try:
                os.link(self.path(i), target)
            except OSError:
                shutil.copy2(self.path(i), target)
