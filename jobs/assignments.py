"""Who has which video, and who is to blame when a worker dies.

When a worker dies, each video it had not assembled is a suspect: it is run again alone, and only a
worker that dies with one video alone condemns that video. What was assembled cannot have been the
cause and is simply done again, and so is what a worker had that went with its whole node, for
nodes are taken away and come back. Nothing in here knows Ray.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from jobs.plan import Task
from schemas.index import IndexRow

CHUNKS_PER_WORKER = 4
"""A worker is given this part of an even share of what is left, so that all end together."""

MAX_LOSSES = 2
"""A video lost more often than this after it was assembled, or with a node, is a suspect too."""


@dataclass(slots=True, eq=False)
class Holding:
    """What one worker has, by video id."""

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
        self._fresh = iter(tasks)
        self._num_fresh = len(tasks)
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

    def lost(self, holding: Holding, *, with_node: bool = False) -> Task | None:
        """Take back what a dead worker held; the video that is to blame, when that is certain."""
        held = holding.unassembled | holding.uncommitted
        suspects = {} if with_node else holding.unassembled
        self._losses.update(held.keys() - suspects.keys())
        is_alone = holding.has_suspect and len(held) == 1
        for video_id, task in held.items():
            is_suspect = video_id in suspects or self._losses[video_id] > MAX_LOSSES
            if is_alone and (is_suspect or not with_node):
                self._num_open -= 1
                return task
            (self._suspects if is_suspect or is_alone else self._again).append(task)
        return None

    def _next(self) -> Task:
        if self._again:
            return self._again.popleft()
        self._num_fresh -= 1
        return next(self._fresh)

    def _give(self, holding: Holding, videos: list[Task]) -> list[Task]:
        holding.unassembled |= {task.video_id: task for task in videos}
        holding.num_taken += len(videos)
        return videos
