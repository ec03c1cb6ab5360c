"""A build in this process: one worker, no Ray."""

from collections.abc import Iterator, Sequence

from jobs.events import Event
from jobs.plan import Task
from jobs.worker import Worker
from schemas.config import BuildConfig
from schemas.manifest import Manifest


class LocalRunner:
    """Runs a build on this process's own worker."""

    def __init__(self, config: BuildConfig, location: str) -> None:
        self._worker = Worker(config, location)

    @property
    def manifest(self) -> Manifest:
        """What this runner would build."""
        return self._worker.manifest

    @property
    def metrics_urls(self) -> Sequence[str]:
        """None: metrics are Ray's."""
        return ()

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """Yield what happens to the videos."""
        self._worker.add(tasks)
        self._worker.finish()
        return self._worker.run()

    def close(self) -> None:
        self._worker.close()
