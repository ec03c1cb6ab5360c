"""A build on Ray: one actor per worker, whole videos inside it, only events and rows come back."""

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from jobs.assignments import Assignments, Holding
from jobs.events import Assembled, Committed, Event, Lost
from jobs.failures import failed_row
from jobs.metrics import DriverMetrics, metrics_urls
from jobs.plan import Task
from jobs.ray_cluster import connect, gpus_per_worker, one_line, require_resources
from jobs.worker import Worker
from jobs.worker_actor import CONCURRENT_CALLS, WorkerActor
from pipeline.storage import Location, open_storage
from pipeline.storage.remote import file_digest
from pipeline.store.commit import commit_videos
from schemas.config import BuildConfig
from schemas.errors import ConfigError, WorkerDiedError
from schemas.manifest import Manifest

WORKER_DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError, ObjectLostError)
"""How Ray says that a process is gone: crashed or killed, by its memory monitor, with its node."""

OUT_OF_REACH = (ActorUnavailableError, NodeDiedError, ObjectLostError)
"""Those of them that say nothing about the process itself: its node went, or the way to it."""

PATIENCE_SECONDS = 30.0
"""While nobody works, how often to ask whether a worker can still come."""

FAILED_STARTS_PER_WORKER = 3
"""New workers that die before they are ready, in a row, until the build gives up."""

CLOSING_SECONDS = 30.0
"""What workers get at an early end to commit what they have encoded."""


@dataclass(slots=True, eq=False)
class Member:
    """One actor: ``start`` its answer to being started, ``events`` its stream once it works."""

    actor: Any
    start: Any
    node_id: str = ""
    events: Any = None
    holding: Holding = field(default_factory=Holding)

    def begin(self) -> None:
        """Let it work on what it is given."""
        self.events = self.actor.run.options(num_returns="streaming").remote()


class RayRunner:
    """Runs a build on Ray actors that are given videos as they finish others."""

    def __init__(
        self, config: BuildConfig, location: Location, *, worker_class: type[Worker] = Worker
    ) -> None:
        self._config = config
        self._location = os.fspath(location)
        self._worker_class = worker_class
        self._crew: list[Member] = []
        self._fingerprint = ""
        self._failed_starts = 0
        self._owns_ray = not ray.is_initialized()
        is_new_ray = self._owns_ray and connect(config.run)
        try:
            self.metrics_urls = metrics_urls() if is_new_ray else []
            self._metrics = DriverMetrics(self._location)
            self._num_gpus = gpus_per_worker(config)
            require_resources(config.run, self._num_gpus, workers=config.run.workers)
            self.manifest: Manifest = self._first_start([self._hire()])
            self._fingerprint = self.manifest.fingerprint
            self._first_start([self._hire() for _ in range(config.run.workers - 1)])
        except BaseException:
            self.close()
            raise

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """Yield what happens to the videos, until all are committed.

        Raises:
            WorkerDiedError: no worker is left and none can be started.
            TokenreelError: what a worker raised: its cache cannot be written, its accelerator
                failed for good.
        """
        assignments = Assignments(
            tasks,
            num_workers=self._config.run.workers,
            min_videos=self._config.decode.children + 1,
            max_videos=self._config.run.videos_at_a_time,
        )
        self._metrics.begin(tasks)
        for member in self._crew:
            member.begin()
        while not assignments.is_done:
            self._deal(assignments)
            for member in self._news():
                try:
                    event = self._hear(member)
                except WORKER_DEATHS as death:
                    yield from self._bury(member, assignments, death)
                    continue
                if isinstance(event, Assembled):
                    assignments.assembled(member.holding, event.video_ids)
                elif isinstance(event, Committed):
                    assignments.committed(member.holding, event.rows)
                    self._metrics.finished(len(event.rows))
                if event is not None:
                    yield event

    def close(self) -> None:
        """End the workers, which commit what they have encoded; leave Ray if we joined it."""
        busy = [member for member in self._crew if not member.holding.is_empty]
        calls = [member.actor.close.remote() for member in busy]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=CLOSING_SECONDS)
        for member in self._crew:
            ray.kill(member.actor)
        self._crew.clear()
        if self._owns_ray:
            ray.shutdown()

    def _hire(self) -> Member:
        """Begin to start a worker."""
        actor_class = ray.remote(WorkerActor).options(
            num_cpus=self._config.run.cpus_per_worker,
            num_gpus=self._num_gpus,
            max_restarts=0,
            max_concurrency=CONCURRENT_CALLS,
        )
        actor: Any = actor_class.remote(self._worker_class)
        start = actor.start.remote(self._config, self._location, self._fingerprint)
        self._crew.append(Member(actor, start))
        return self._crew[-1]

    def _first_start(self, members: Sequence[Member]) -> Manifest:
        """Wait for workers without which the build cannot begin."""
        try:
            manifests = [self._await_start(member) for member in members]
        except WORKER_DEATHS as error:
            raise WorkerDiedError(
                f"a worker died before its first video: {one_line(error)}. Look for a lack of "
                "memory on its node; everything finished so far is in the cache"
            ) from error
        return manifests[0] if manifests else self.manifest

    def _await_start(self, member: Member) -> Manifest:
        try:
            manifest: Manifest = ray.get(member.start)
            member.node_id = ray.get(member.actor.node_id.remote())
        except RayTaskError as error:
            raise _cause(error) from error
        self._failed_starts = 0
        return manifest

    def _deal(self, assignments: Assignments) -> None:
        """Keep every worker busy; let those go that have done their share of videos."""
        limit = self._config.run.recycle_videos
        for member in list(self._crew):
            if limit is not None and member.holding.num_taken >= limit:
                if member.holding.is_empty:
                    self._replace(member)
            elif member.events is not None and (videos := assignments.deal(member.holding)):
                member.actor.add.remote(videos)

    def _news(self) -> list[Member]:
        """Members that have something to say; raises instead of waiting for what cannot come."""
        by_call = {member.events or member.start: member for member in self._crew}
        is_working = any(not member.holding.is_empty for member in self._crew)
        timeout = None if is_working else PATIENCE_SECONDS
        ready, _ = ray.wait(list(by_call), num_returns=1, timeout=timeout, fetch_local=False)
        if not ready:
            self._require_hope()
        return [by_call[call] for call in ready]

    def _require_hope(self) -> None:
        """Raise WorkerDiedError when the cluster can no longer hold a single worker."""
        try:
            require_resources(self._config.run, self._num_gpus, workers=1)
        except ConfigError as error:
            raise WorkerDiedError(
                f"no worker is left, and none can come: {error}. If nodes were taken away, add "
                "others and run the same command again; everything committed so far is in the cache"
            ) from error

    def _hear(self, member: Member) -> Event | None:
        """The member's next event; None when all it says is that it is ready."""
        if member.events is None:
            self._await_start(member)
            member.begin()
            return None
        try:
            event: Event = ray.get(next(member.events))
        except RayTaskError as error:
            raise _cause(error) from error
        return event

    def _replace(self, member: Member) -> None:
        """End a worker and begin to start another; the others go on meanwhile."""
        ray.kill(member.actor)
        self._crew.remove(member)
        self._hire()

    def _bury(self, member: Member, assignments: Assignments, death: Exception) -> Iterator[Event]:
        """Replace a dead worker; its videos are done again, but for one certain to be the cause.

        Raises:
            WorkerDiedError: new workers die as well, before their first video.
        """
        self._metrics.died(death)
        if member.events is None:
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS_PER_WORKER * self._config.run.workers:
                raise WorkerDiedError(
                    f"{self._failed_starts} workers in a row died while they started, the last "
                    f"one: {one_line(death)}. Look for a lack of memory on their nodes; "
                    "everything finished so far is in the cache"
                ) from death
        yield Lost(tuple(member.holding.uncommitted), one_line(death))
        self._replace(member)
        with_node = _went_with_node(member, death)
        condemned = assignments.lost(member.holding, with_node=with_node)
        if condemned is not None:
            yield self._quarantine(condemned, death)

    def _quarantine(self, task: Task, death: Exception) -> Committed:
        """Record a video as the cause of its worker's death."""
        error = WorkerDiedError(
            "its worker died more than once with this video, the last time with it alone: "
            f"{one_line(death)}"
        )
        row = failed_row(
            task.ref,
            error,
            fingerprint=self._fingerprint,
            attempts=task.attempts + 2,
            writer=f"{socket.gethostname()}:{os.getpid()}",
            content_sha256=_digest_if_readable(task.ref.path),
            newer_than_ns=task.newer_than_ns,
        )
        rows = tuple(commit_videos(open_storage(self._location), [row]))
        self._metrics.quarantined(rows)
        return Committed(rows, 0.0)


def _went_with_node(member: Member, death: Exception) -> bool:
    """Whether a worker's death is its node's; Ray may notice the node's only some seconds later."""
    if isinstance(death, OUT_OF_REACH):
        return True
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return member.node_id not in {node["NodeID"] for node in nodes if node["Alive"]}


def _digest_if_readable(path: str) -> str | None:
    try:
        return file_digest(path)
    except OSError:
        return None


def _cause(error: RayTaskError) -> Exception:
    """The worker's own exception, without Ray's traceback text."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
