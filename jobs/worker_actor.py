"""A Worker inside its Ray process."""

from collections.abc import Iterator, Sequence

import ray

from jobs.events import Event
from jobs.metrics import WorkerMetrics
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
        self._parts: tuple[Worker, WorkerMetrics] | None = None

    def start(self, config: BuildConfig, location: str, fingerprint: str) -> Manifest:
        """Load the encoder; errors travel back to the driver as they are."""
        worker = self._worker_class(config, location, fingerprint=fingerprint)
        self._parts = worker, WorkerMetrics(location)
        return worker.manifest

    def node_id(self) -> str:
        """The Ray node this process runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def add(self, tasks: Sequence[Task]) -> None:
        """Queue videos."""
        worker, metrics = self._started
        metrics.given(len(tasks))
        worker.add(tasks)

    def run(self) -> Iterator[Event]:
        """Stream what happens; ends after ``close``."""
        worker, metrics = self._started
        for event in worker.run():
            metrics.note(event)
            yield event

    def close(self) -> None:
        """Commit what is encoded, drop the rest."""
        worker, _ = self._started
        worker.close()

    @property
    def _started(self) -> tuple[Worker, WorkerMetrics]:
        assert self._parts is not None, "start comes first"
        return self._parts
