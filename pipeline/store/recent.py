"""Index rows looked up before: reading one anew costs as much as reading a megabyte."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from schemas.index import IndexRow

MAX_ROWS = 4096


class RecentRows:
    """Remembers the rows looked up last, a few thousand; threads may share it.

    Crossing to another process it remembers nothing.
    """

    def __init__(self) -> None:
        self._rows: dict[str, IndexRow] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[RecentRows], tuple[()]]:
        return RecentRows, ()

    def get(self, video_id: str, look_up: Callable[[str], IndexRow]) -> IndexRow:
        """The row of ``video_id``, from ``look_up`` unless it is remembered; raises as that."""
        row = self._rows.get(video_id)
        if row is None:
            row = look_up(video_id)
            with self._lock:
                if len(self._rows) >= MAX_ROWS:
                    del self._rows[next(iter(self._rows))]
                self._rows[video_id] = row
        return row
