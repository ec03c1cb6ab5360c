"""A build on Ray: one actor per worker, whole videos inside it, only index rows come back.

When a worker dies, the videos it held are run again alone; a video is quarantined only when its
worker dies while that video is alone in it.
"""

import dataclasses
import logging
import math
import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from jobs.failures import failed_row
from jobs.plan import Task
from jobs.worker import Worker
from pipeline.keys import content_digest
from pipeline.store.commit import commit_videos
from schemas.config import BuildConfig, RunConfig
from schemas.errors import ConfigError, TokenreelError, WorkerDiedError
from schemas.index import IndexRow
from schemas.manifest import Manifest

CONNECT_SECONDS = 10.0

WORKER_DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError, ObjectLostError)
"""How Ray says that a process is gone: crashed or killed, by its memory monitor, with its node."""


class WorkerActor:
    """The shell round a Worker inside its Ray process."""

    def __init__(self, worker_class: type[Worker]) -> None:
        self._worker_class = worker_class
        self._worker: Worker | None = None

    def start(self, config: BuildConfig, root: str, fingerprint: str) -> Manifest:
        """Load the encoder; errors travel back to the driver as they are."""
        self._worker = self._worker_class(config, root, fingerprint=fingerprint)
        return self._worker.manifest

    def run_task(self, task: Task) -> list[IndexRow]:
        """Process a whole task; the rows of all its commits."""
        assert self._worker is not None, "start comes first"
        return [row for rows in self._worker.run_task(task) for row in rows]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task on its worker; ``is_suspect`` marks a video run alone after its worker died."""

    task: Task
    is_suspect: bool = False


class RayRunner:
    """Runs tasks on Ray actors, one task per actor at a time."""

    def __init__(
        self, config: BuildConfig, root: Path, *, worker_class: type[Worker] = Worker
    ) -> None:
        self._config = config
        self._root = root
        self._worker_class = worker_class
        self._actors: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _connect(config.run)
        try:
            self._num_gpus = _gpus_per_worker(config)
            _require_resources(config.run, self._num_gpus)
            actors = [self._new_actor() for _ in range(config.run.workers)]
            self.manifest: Manifest = self._start(actors[:1])[0]
            self._start(actors[1:], self.manifest.fingerprint)
        except BaseException:
            self.close()
            raise
        self._idle = deque(actors)

    def run(self, tasks: Sequence[Task]) -> Iterator[list[IndexRow]]:
        """Yield the rows of each finished task, in order of completion.

        Raises:
            WorkerDiedError: no worker is left and none can be started.
        """
        waiting = deque(Assignment(task) for task in tasks)
        running: dict[Any, tuple[Any, Assignment]] = {}
        while waiting or running:
            while waiting and self._idle:
                actor, assignment = self._idle.popleft(), waiting.popleft()
                running[actor.run_task.remote(assignment.task)] = (actor, assignment)
            for call in self._wait([*running, *self._starting], is_working=bool(running)):
                if call in self._starting:
                    self._finish_start(call)
                    continue
                actor, assignment = running.pop(call)
                try:
                    rows = ray.get(call)
                except WORKER_DEATHS as death:
                    self._replace(actor)
                    if not assignment.is_suspect:
                        alone = assignment.task.alone()
                        waiting.extend(Assignment(task, is_suspect=True) for task in alone)
                        continue
                    rows = self._quarantine(assignment.task, death)
                except RayTaskError as error:
                    raise _cause(error) from error
                else:
                    self._idle.append(actor)
                yield rows

    def _wait(self, calls: Sequence[Any], *, is_working: bool) -> list[Any]:
        """The calls that are done; raises instead of waiting for a worker that cannot come."""
        if not calls:
            raise WorkerDiedError(
                "every worker died before its next video; look for a lack of memory on their "
                "nodes. Everything finished so far is in the cache"
            )
        done, _ = ray.wait(list(calls), num_returns=1, timeout=None if is_working else 30.0)
        if not done:
            _require_resources(dataclasses.replace(self._config.run, workers=1), self._num_gpus)
        return list(done)

    def close(self) -> None:
        """End the workers, and leave Ray if this runner joined it."""
        for actor in self._actors:
            ray.kill(actor)
        if self._owns_ray:
            ray.shutdown()

    def _new_actor(self) -> Any:
        actor_class = ray.remote(WorkerActor).options(
            num_cpus=self._config.run.cpus_per_worker, num_gpus=self._num_gpus, max_restarts=0
        )
        self._actors.append(actor_class.remote(self._worker_class))
        return self._actors[-1]

    def _start(self, actors: Sequence[Any], fingerprint: str = "") -> list[Manifest]:
        calls = [a.start.remote(self._config, str(self._root), fingerprint) for a in actors]
        try:
            return list(ray.get(calls))
        except RayTaskError as error:
            raise _cause(error) from error
        except WORKER_DEATHS as error:
            raise WorkerDiedError(
                f"a worker died before its first video: {_one_line(error)}. Look for a lack of "
                "memory on its node; everything finished so far is in the cache"
            ) from error

    def _replace(self, dead: Any) -> None:
        """Begin to start another worker; the others go on meanwhile."""
        ray.kill(dead)
        self._actors.remove(dead)
        actor = self._new_actor()
        call = actor.start.remote(self._config, str(self._root), self.manifest.fingerprint)
        self._starting[call] = actor

    def _finish_start(self, call: Any) -> None:
        actor = self._starting.pop(call)
        try:
            ray.get(call)
        except WORKER_DEATHS:
            self._actors.remove(actor)
        except RayTaskError as error:
            raise _cause(error) from error
        else:
            self._idle.append(actor)

    def _quarantine(self, task: Task, death: Exception) -> list[IndexRow]:
        """Record the one video of ``task`` as the cause of its worker's death."""
        error = WorkerDiedError(
            f"its worker process died twice with this video, the second time with it alone: "
            f"{_one_line(death)}"
        )
        ref = task.videos[0]
        row = failed_row(
            ref,
            error,
            fingerprint=self.manifest.fingerprint,
            attempts=task.attempts[0] + 2,
            writer=f"{socket.gethostname()}:{os.getpid()}",
            content_sha256=_digest_if_readable(ref.path),
            newer_than_ns=task.newer_than_ns[0],
        )
        return commit_videos(self._root, [row])


def _digest_if_readable(path: str) -> str | None:
    try:
        return content_digest(path)
    except OSError:
        return None


def _connect(run: RunConfig) -> None:
    """Join the cluster at ``run.address`` or RAY_ADDRESS, or start one on this machine only."""
    address = run.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        wanted = math.ceil(run.workers * run.cpus_per_worker)
        options |= {
            "num_cpus": max(wanted, os.cpu_count() or 1),
            "include_dashboard": False,
            "runtime_env": {"env_vars": {"PYTHONPATH": _import_path()}},
        }
    try:
        if address is not None:
            _require_reachable(address)
        ray.init(address=address or "local", **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise TokenreelError(
            f"no Ray at address {address!r}: {_one_line(error)}. Start one with `ray start "
            "--head`, or leave --address out to run on this machine"
        ) from error


def _cluster_resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def _gpus_per_worker(config: BuildConfig) -> float:
    """What the settings say; without a word one GPU, or a share when workers outnumber them."""
    if config.run.gpus_per_worker is not None:
        return config.run.gpus_per_worker
    num_gpus = _cluster_resources().get("GPU", 0.0)
    return 0.0 if config.encoder.device == "cpu" else min(1.0, num_gpus / config.run.workers)


def _require_resources(run: RunConfig, num_gpus: float) -> None:
    """Raise ConfigError when the workers can never all run: Ray would wait without a word."""
    have = _cluster_resources()
    for name, each in (("CPU", run.cpus_per_worker), ("GPU", num_gpus)):
        wanted, found = each * run.workers, have.get(name, 0.0)
        if wanted > found + 1e-6:
            raise ConfigError(
                f"{run.workers} workers of {each:g} {name} each need {wanted:g}, the Ray cluster "
                f"has {found:g}; lower --workers or run.{name.lower()}s_per_worker"
            )


def _require_reachable(address: str) -> None:
    """Raise OSError unless something listens at host:port; Ray itself would try for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _import_path() -> str:
    """PYTHONPATH with which workers on this machine find the packages the driver runs from."""
    here = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))


def _cause(error: RayTaskError) -> Exception:
    """The worker's own exception, without Ray's traceback text."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
