"""Rows of finished batches while a run lasts: a kill loses one batch at most."""

import io
import os
import shutil
from pathlib import Path

import numpy as np

from imatrix_lab.core.files import replacing


class Partial:
    """One file a batch, each there whole or not at all.

    Parameters
    ----------
    folder : outlives a killed run.
    sizes : rows of each batch.
    name : of what the rows are, where a folder holds several kinds.
    """

    def __init__(self, folder: Path, sizes: list[int], name: str = "rows"):
        self._folder, self._sizes, self._name = folder, sizes, name
        self._there = {i for i in range(len(sizes)) if self._is_whole(i)}

    def path(self, batch: int) -> Path:
        """Return the file of a batch."""
        return self._folder / f"{self._name}-{batch:06d}.npy"

    def _is_whole(self, batch: int) -> bool:
        try:
            return len(np.load(self.path(batch), mmap_mode="r")) == self._sizes[batch]
        except (OSError, ValueError, EOFError):
            return False

    def has(self, batch: int) -> bool:
        """Return whether a batch is done."""
        return batch in self._there

    def add(self, batch: int, rows: np.ndarray) -> None:
        """Keep the rows of a batch."""
        assert len(rows) == self._sizes[batch]
        content = io.BytesIO()
        np.save(content, rows)
        with replacing(self.path(batch)) as temporary:
            temporary.write_bytes(content.getbuffer())  # numpy's errors hide that a disk is full
        self._there.add(batch)

    def rows(self, batch: int) -> np.ndarray:
        """Return the rows of a batch, mapped from disk."""
        found: np.ndarray = np.load(self.path(batch), mmap_mode="r")
        return found

    def all(self) -> np.ndarray:
        """Return the rows of all batches in order; there is at least one batch."""
        return np.concatenate([self.rows(i) for i in range(len(self._sizes))])

    def hand_over(self, out: Path) -> None:
        """Put every file into `out` too: linked, so that nothing is lost or written twice."""
        for i in range(len(self._sizes)):
            target = out / self.path(i).name
            try:
                os.link(self.path(i), target)
            except OSError:  # a disk without links
                shutil.copy2(self.path(i), target)
