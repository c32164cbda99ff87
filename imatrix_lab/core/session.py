"""What every step of the work needs: where results are kept, and who hears how it goes."""

from dataclasses import dataclass, field

from imatrix_lab.core.progress import Progress
from imatrix_lab.core.store import Store


@dataclass(frozen=True)
class Session:
    """A store and a progress report, passed together."""

    store: Store
    progress: Progress
    heard: set[str] = field(default_factory=set, compare=False)

    def say_once(self, about: str, message: str) -> None:
        """Print ``note: ABOUT: MESSAGE``, unless this session has said the message of something."""
        if message not in self.heard:
            self.heard.add(message)
            self.progress.say(f"note: {about}: {message}")

    def read_only(self) -> "Session":
        """Return a session that finds what is there and builds nothing (`NotBuilt`)."""
        return Session(Store(self.store.root, read_only=True), self.progress, self.heard)
