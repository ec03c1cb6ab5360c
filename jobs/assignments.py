"""Who has which video, and who is to blame when a worker dies.

When a worker dies, each video it had not assembled is a suspect: it is run again alone, and only a
worker that dies with one video alone condemns that video. What was assembled cannot have been the
cause and is simply done again. Nothing in here knows Ray.
"""

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from jobs.plan import Task
from schemas.index import IndexRow

CHUNKS_PER_WORKER = 4
"""A worker is given this part of an even share of what is left, so that all end together."""

MAX_LOSSES = 2
"""A video lost so often after it was assembled is a suspect as well."""


@dataclass(slots=True, eq=False)
class Holding:
    """What one worker has: videos by id, each as a task of its own."""

    unassembled: dict[str, Task] = field(default_factory=dict)
    uncommitted: dict[str, Task] = field(default_factory=dict)
    has_suspect: bool = False
    num_taken: int = 0

    @property
    def is_empty(self) -> bool:
        return not self.unassembled and not self.uncommitted


class Assignments:
    """Deals out the videos of a build and takes back what dead workers held.

    Args:
        tasks: what is to do, largest videos first.
        num_workers: how many share it.
        min_videos, max_videos: how many a worker gets at a time, if there are so many; where the
            two contradict each other ``max_videos`` counts.
    """

    def __init__(
        self, tasks: Sequence[Task], *, num_workers: int, min_videos: int, max_videos: int
    ) -> None:
        self._fresh = itertools.chain.from_iterable(task.alone() for task in tasks)
        self._num_fresh = sum(len(task.videos) for task in tasks)
        self._again: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        self._losses: Counter[str] = Counter()
        self._num_workers = num_workers
        self._min_videos = min_videos
        self._max_videos = max_videos
        self._num_open = self._num_fresh

    @property
    def is_done(self) -> bool:
        """Whether every video is committed."""
        return self._num_open == 0

    def deal(self, holding: Holding) -> list[Task]:
        """The next videos for a worker; none when it should have no more for now."""
        if self._suspects and holding.is_empty:
            holding.has_suspect = True
            return self._give(holding, [self._suspects.popleft()])
        if holding.has_suspect and not holding.is_empty:
            return []
        holding.has_suspect = False
        num_waiting = self._num_fresh + len(self._again)
        share = num_waiting // (self._num_workers * CHUNKS_PER_WORKER)
        num_videos = min(max(self._min_videos, share), self._max_videos)
        if len(holding.unassembled) > num_videos:
            return []
        return self._give(holding, [self._next() for _ in range(min(num_videos, num_waiting))])

    def assembled(self, holding: Holding, video_ids: Iterable[str]) -> None:
        """Note that a worker needs no more than to commit these."""
        for video_id in video_ids:
            holding.uncommitted[video_id] = holding.unassembled.pop(video_id)

    def committed(self, holding: Holding, rows: Iterable[IndexRow]) -> None:
        """Note that these are done."""
        for row in rows:
            del holding.uncommitted[row.video_id]
            self._num_open -= 1

    def lost(self, holding: Holding) -> Task | None:
        """Take back what a dead worker held; the video that is to blame, when that is certain."""
        videos = [*holding.unassembled.values(), *holding.uncommitted.values()]
        if holding.has_suspect and len(videos) == 1:
            self._num_open -= 1
            return videos[0]
        self._suspects.extend(holding.unassembled.values())
        for video_id, task in holding.uncommitted.items():
            self._losses[video_id] += 1
            again = self._suspects if self._losses[video_id] > MAX_LOSSES else self._again
            again.append(task)
        return None

    def _next(self) -> Task:
        if self._again:
            return self._again.popleft()
        self._num_fresh -= 1
        return next(self._fresh)

    def _give(self, holding: Holding, videos: list[Task]) -> list[Task]:
        holding.unassembled |= {task.videos[0].video_id: task for task in videos}
        holding.num_taken += len(videos)
        return videos
