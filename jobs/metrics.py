"""Numbers of a running build on Ray, shown at the endpoints that Ray opens for Prometheus.

docs/metrics.md says what they mean; Ray puts ``ray_`` before their names and ``_total`` behind
those of counters.
"""

import logging
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from jobs.events import Committed, Event
from jobs.plan import Task
from schemas.index import IndexRow

COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tokenreel_videos": ("Videos with a committed row.", ("status", "error_kind")),
    "tokenreel_source_bytes": ("Size of the source files of these videos.", ()),
    "tokenreel_video_seconds": ("Playing time of the videos that are ok.", ()),
    "tokenreel_written_bytes": ("Size of their records in shards.", ()),
    "tokenreel_tokens_before": ("Visual tokens before fusion.", ()),
    "tokenreel_tokens_after": ("Visual tokens kept.", ()),
    "tokenreel_busy_seconds": ("Time spent in each stage.", ("stage",)),
    "tokenreel_worker_deaths": ("Worker processes that died, by Ray's reason.", ("reason",)),
}
"""Name -> description, labels besides ``cache``."""

GAUGES: Mapping[str, str] = {
    "tokenreel_held_videos": "Videos that a worker has and has not committed.",
    "tokenreel_remaining_videos": "Videos of a build that are not committed.",
}

HISTOGRAMS: Mapping[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "tokenreel_stage_duration_seconds": (
        "Time a video takes to decode, encode and fuse, and a commit to write.",
        ("stage",),
        (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    ),
    "tokenreel_keep_ratio": (
        "Part of its visual tokens that a video keeps.",
        (),
        (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    ),
}
"""Name -> description, labels besides ``cache``, upper boundaries of the buckets."""

logger = logging.getLogger(__name__)


def metrics_urls() -> list[str]:
    """Where the nodes of the cluster show their numbers; none where Ray collects none."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in nodes
        if node["Alive"] and node["MetricsExportPort"] > 0
    ]


class Recorder:
    """Hands numbers to Ray, labelled with the cache they belong to; never raises."""

    def __init__(self, cache: str) -> None:
        self._cache = cache.encode("ascii", "backslashreplace").decode()  # Ray takes no other
        self._metrics: dict[str, Any] = {}
        with _harmless():
            for name, (about, labels) in COUNTERS.items():
                self._metrics[name] = Counter(name, about, ("cache", *labels))
            for name, about in GAUGES.items():
                self._metrics[name] = Gauge(name, about, ("cache",))
            for name, (about, labels, boundaries) in HISTOGRAMS.items():
                self._metrics[name] = Histogram(name, about, [*boundaries], ("cache", *labels))

    def add(self, name: str, value: float | None, **labels: str) -> None:
        """Increase a counter; Ray's take no zero, and a NaN would stay in one for good."""
        if value is not None and 0 < value < math.inf:
            with _harmless():
                self._metrics[name].inc(value, {"cache": self._cache, **labels})

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        with _harmless():
            self._metrics[name].set(value, {"cache": self._cache})

    def observe(self, name: str, value: float | None, **labels: str) -> None:
        """Put a value into a histogram."""
        if value is not None and math.isfinite(value):
            with _harmless():
                self._metrics[name].observe(value, {"cache": self._cache, **labels})

    def add_stage(self, stage: str, seconds: float | None) -> None:
        """Note what a stage took; the counter is exact, Ray rounds a histogram's sum."""
        self.observe("tokenreel_stage_duration_seconds", seconds, stage=stage)
        self.add("tokenreel_busy_seconds", seconds, stage=stage)

    def add_rows(self, rows: Iterable[IndexRow]) -> None:
        """Sum up rows that were committed."""
        for row in rows:
            kind = row.error_kind or ""
            self.add("tokenreel_videos", 1, status=row.status, error_kind=kind)
            self.add("tokenreel_source_bytes", row.size_bytes)
            if row.status == "ok":
                self.add("tokenreel_video_seconds", row.duration_seconds)
                self.add("tokenreel_written_bytes", row.num_bytes)
                self.add("tokenreel_tokens_before", row.tokens_before)
                self.add("tokenreel_tokens_after", row.tokens_after)
                self.observe("tokenreel_keep_ratio", row.keep_ratio)
                self.add_stage("decode", row.decode_seconds)
                self.add_stage("encode", row.encode_seconds)
                self.add_stage("fuse", row.fuse_seconds)


class WorkerMetrics:
    """What a worker counts."""

    def __init__(self, cache: str) -> None:
        self._recorder = Recorder(cache)
        self._lock = threading.Lock()
        self._num_held = 0

    def given(self, num_videos: int) -> None:
        """Note videos that this worker was handed; from any thread."""
        with self._lock:
            self._num_held += num_videos
            self._recorder.set("tokenreel_held_videos", self._num_held)

    def note(self, event: Event) -> None:
        """Take an event into account."""
        if isinstance(event, Committed):
            self._recorder.add_rows(event.rows)
            self._recorder.add_stage("write", event.write_seconds)
            self.given(-len(event.rows))


class DriverMetrics:
    """What only the driver knows."""

    def __init__(self, cache: str) -> None:
        self._recorder = Recorder(cache)
        self._num_remaining = 0

    def begin(self, tasks: Sequence[Task]) -> None:
        """Note what is to do."""
        self.finished(-len(tasks))

    def finished(self, num_videos: int) -> None:
        """Note videos that a worker has committed and counted."""
        self._num_remaining -= num_videos
        self._recorder.set("tokenreel_remaining_videos", self._num_remaining)

    def died(self, death: Exception) -> None:
        """Note the death of a worker."""
        self._recorder.add("tokenreel_worker_deaths", 1, reason=type(death).__name__)

    def quarantined(self, rows: Iterable[IndexRow]) -> None:
        """Count videos whose worker does not live to do it."""
        rows = list(rows)
        self._recorder.add_rows(rows)
        self.finished(len(rows))


@contextmanager
def _harmless() -> Iterator[None]:
    """No number is worth a video: what cannot be counted is logged and missing."""
    try:
        yield
    except Exception:  # whatever Ray's metrics have to say
        logger.warning("a metric could not be counted", exc_info=True)
