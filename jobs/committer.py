"""Committing behind the encoder: a thread that gathers finished videos into shards."""

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from jobs.events import Committed
from jobs.room import Room
from pipeline.storage import Storage
from pipeline.store.commit import PendingVideo, commit_videos
from schemas.config import StoreConfig
from schemas.index import IndexRow

Entry = PendingVideo | IndexRow
Deliver = Callable[[Committed | Exception], None]

FIRST_COMMIT_SECONDS = 4.0
"""A worker's first finished video waits this long for its commit, each later batch twice as long
as the one before, up to ``store.commit_seconds``: failures show early, shards grow large."""

SHARDS_WAITING = 2
"""Shards' worth of finished videos that may wait for the disk before the encoder does."""


def entry_bytes(entry: Entry) -> int:
    """What an entry adds to its shard."""
    return entry.record.layout.num_bytes if isinstance(entry, PendingVideo) else 0


def entry_video_id(entry: Entry) -> str:
    """Whose entry it is."""
    return entry.video_id if isinstance(entry, IndexRow) else str(entry.fields["video_id"])


class Committer:
    """Commits what it is given: by bytes, by time, and when nothing else is to come.

    Args:
        storage: where the cache lies.
        store: when to commit.
        deliver: called with each commit, or with the error that ended the thread; what was not
            committed by then is lost to this run, not to the next.
    """

    def __init__(self, storage: Storage, store: StoreConfig, deliver: Deliver) -> None:
        self._storage = storage
        self._store = store
        self._deliver = deliver
        self._room = Room(SHARDS_WAITING * store.shard_bytes)
        self._inbox: SimpleQueue[tuple[Sequence[Entry], bool] | None] = SimpleQueue()
        self._batch: list[Entry] = []
        self._batch_bytes = 0
        self._interval_seconds = min(FIRST_COMMIT_SECONDS, store.commit_seconds)
        self._batch_since = 0.0
        self._thread = threading.Thread(target=self._serve, name="commit", daemon=True)
        self._thread.start()

    def put(self, entries: Sequence[Entry], *, is_last: bool) -> None:
        """Hand over finished videos; waits while too many wait for the disk.

        ``is_last`` says that no other video is on its way: commit at once.
        """
        self._room.wait()
        self._room.enter(sum(map(entry_bytes, entries)))
        self._inbox.put((entries, is_last))

    def close(self) -> None:
        """Commit what is there and end the thread."""
        self._room.close()
        self._inbox.put(None)
        self._thread.join()

    def _serve(self) -> None:
        try:
            while self._take():
                pass
        except Exception as error:  # a thread has nobody to raise to
            self._room.close()
            self._deliver(error)

    def _take(self) -> bool:
        """Handle one message, or the passing of time; False when the last one was handled."""
        try:
            message = self._inbox.get(timeout=self._seconds_left())
        except Empty:
            self._commit()
            return True
        if message is None:
            self._commit()
            return False
        entries, is_last = message
        for entry in entries:
            if not self._batch:
                self._batch_since = time.monotonic()
            self._batch.append(entry)
            self._batch_bytes += entry_bytes(entry)
            if self._batch_bytes >= self._store.shard_bytes:
                self._commit()
        if is_last or self._seconds_left() == 0.0:
            self._commit()
        return True

    def _seconds_left(self) -> float | None:
        """Until what waits must be committed; None when nothing waits."""
        if not self._batch:
            return None
        return max(0.0, self._batch_since + self._interval_seconds - time.monotonic())

    def _commit(self) -> None:
        if not self._batch:
            return
        started = time.perf_counter()
        rows = commit_videos(self._storage, self._batch)
        seconds = time.perf_counter() - started
        self._room.leave(self._batch_bytes)
        self._batch, self._batch_bytes = [], 0
        self._interval_seconds = min(2 * self._interval_seconds, self._store.commit_seconds)
        self._deliver(Committed(tuple(rows), seconds))
