"""A Worker inside its Ray process."""

from collections.abc import Iterator, Sequence

from jobs.events import Event
from jobs.plan import Task
from jobs.worker import Worker
from schemas.config import BuildConfig
from schemas.manifest import Manifest

CONCURRENT_CALLS = 3
"""``run`` streams all the time, ``add`` and ``close`` come in between."""


class WorkerActor:
    """What the driver calls."""

    def __init__(self, worker_class: type[Worker]) -> None:
        self._worker_class = worker_class
        self._worker: Worker | None = None

    def start(self, config: BuildConfig, root: str, fingerprint: str) -> Manifest:
        """Load the encoder; errors travel back to the driver as they are."""
        self._worker = self._worker_class(config, root, fingerprint=fingerprint)
        return self._worker.manifest

    def add(self, tasks: Sequence[Task]) -> None:
        """Queue videos."""
        for task in tasks:
            self._started.add(task)

    def run(self) -> Iterator[Event]:
        """Stream what happens; ends after ``close``."""
        yield from self._started.run()

    def close(self) -> None:
        """Commit what is encoded, drop the rest."""
        self._started.close()

    @property
    def _started(self) -> Worker:
        assert self._worker is not None, "start comes first"
        return self._worker
