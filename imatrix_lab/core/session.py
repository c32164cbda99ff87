"""What every step of the work needs: where results are kept, and who hears how it goes."""

from dataclasses import dataclass

from imatrix_lab.core.progress import Progress
from imatrix_lab.core.store import Store


@dataclass(frozen=True)
class Session:
    """A store and a progress report, passed together."""

    store: Store
    progress: Progress

    def read_only(self) -> "Session":
        """Return a session that finds what is there and builds nothing (`NotBuilt`)."""
        return Session(Store(self.store.root, read_only=True), self.progress)
