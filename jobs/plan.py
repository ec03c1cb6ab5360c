"""What a build would do: which videos are new, which are done, and how they form tasks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.keys import content_digest
from schemas.video import VideoRef

TASKS_PER_WORKER = 4
"""With several workers at least so many tasks each, so that none is left with one long task."""

DONE_COLUMNS = (
    "video_id",
    "status",
    "size_bytes",
    "modified_ns",
    "content_sha256",
    "attempts",
    "fingerprint",
    "path",
    "shard",
    "offset",
    "num_bytes",
    "created_ns",
)


@dataclass(frozen=True, slots=True)
class Task:
    """Videos that one worker processes and commits together.

    Per video ``attempts`` is how often it was tried before, and ``newer_than_ns`` the time of its
    row in the index: a new row must be younger, whatever the clocks of two machines say.
    """

    videos: tuple[VideoRef, ...]
    attempts: tuple[int, ...]
    newer_than_ns: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return sum(max(0, ref.size_bytes) for ref in self.videos)

    def alone(self) -> "list[Task]":
        """The same videos as tasks of one each."""
        columns = zip(self.videos, self.attempts, self.newer_than_ns, strict=True)
        return [Task((ref,), (tried,), (time_ns,)) for ref, tried, time_ns in columns]


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """The difference between a corpus and a cache."""

    num_videos: int
    num_done: int
    num_failed_before: int
    todo: tuple[VideoRef, ...]
    attempts: dict[str, int]
    newer_than_ns: dict[str, int]

    @property
    def todo_bytes(self) -> int:
        return sum(max(0, ref.size_bytes) for ref in self.todo)

    def tasks(self, max_videos: int, *, workers: int = 1) -> list[Task]:
        """Tasks of at most ``max_videos``, the largest videos first, enough to busy all workers."""
        ordered = sorted(self.todo, key=lambda ref: (-ref.size_bytes, ref.video_id))
        even_share = math.ceil(len(ordered) / (workers * TASKS_PER_WORKER))
        size = max_videos if workers == 1 else max(1, min(max_videos, even_share))
        groups = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        return [
            Task(
                tuple(group),
                tuple(self.attempts.get(ref.video_id, 0) for ref in group),
                tuple(self.newer_than_ns.get(ref.video_id, 0) for ref in group),
            )
            for group in groups
        ]


def make_plan(
    videos: Sequence[VideoRef],
    index: pa.Table | None,
    *,
    fingerprint: str | None = None,
    shard_sizes: Mapping[str, int] | None = None,
    retry_failed: bool = False,
    limit: int | None = None,
) -> BuildPlan:
    """Compare a corpus with a cache's index.

    A video is done when its row has the same path, size and modification time; when only path or
    time differ, its content is read and decides. Videos that failed are left out unless
    ``retry_failed``, or unless the file has changed since.

    Args:
        videos: the corpus.
        index: one row per video, or None for a cache that does not exist yet.
        fingerprint: of the cache's manifest; rows of another one do not count.
        shard_sizes: bytes of each shard that is there; a committed video whose shard is gone or
            too short is to be made again. None takes all shards for present.
        retry_failed: try failed videos again.
        limit: plan at most this many videos.
    """
    known = _known(index)
    todo: list[VideoRef] = []
    attempts: dict[str, int] = {}
    newer_than_ns: dict[str, int] = {}
    num_done = num_failed = 0
    for ref in videos:
        row = known.get(ref.video_id)
        if row is None or row["fingerprint"] != fingerprint:
            todo.append(ref)
            continue
        is_unchanged = _unchanged(ref, row)
        if is_unchanged and row["status"] == "ok" and _is_stored(row, shard_sizes):
            num_done += 1
        elif is_unchanged and row["status"] != "ok" and not retry_failed:
            num_failed += 1
        else:
            attempts[ref.video_id] = row["attempts"]
            newer_than_ns[ref.video_id] = row["created_ns"]
            todo.append(ref)
    return BuildPlan(
        len(videos), num_done, num_failed, tuple(todo[:limit]), attempts, newer_than_ns
    )


def _known(index: pa.Table | None) -> dict[str, dict[str, Any]]:
    if index is None:
        return {}
    columns = index.select(DONE_COLUMNS).to_pydict()
    rows = zip(*(columns[name] for name in DONE_COLUMNS), strict=True)
    return {row[0]: dict(zip(DONE_COLUMNS, row, strict=True)) for row in rows}


def _is_stored(row: dict[str, Any], shard_sizes: Mapping[str, int] | None) -> bool:
    if shard_sizes is None:
        return True
    return bool(shard_sizes.get(row["shard"], 0) >= row["offset"] + row["num_bytes"])


def _unchanged(ref: VideoRef, row: dict[str, Any]) -> bool:
    if ref.size_bytes != row["size_bytes"]:
        return False
    if ref.modified_ns == row["modified_ns"] and ref.printable_path == row["path"]:
        return True
    if row["content_sha256"] is None:
        return False
    try:
        return bool(content_digest(ref.path) == row["content_sha256"])
    except OSError:
        return False
