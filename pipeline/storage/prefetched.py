"""Byte ranges fetched before they are asked for, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

MAX_BYTES = 2**30
"""What waits at most; a range that would exceed it is not fetched ahead."""

_NUM_FETCHERS = 16

Range = tuple[str, int, int]
"""Name, position, number of bytes."""


@dataclass(slots=True)
class PrefetchedRanges:
    """Ranges under way or waiting. Each is handed out once; threads may share this object."""

    max_bytes: int = MAX_BYTES
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: dict[Range, Future[memoryview]] = field(default_factory=dict)
    _num_bytes: int = 0
    _pool: ThreadPoolExecutor | None = None

    def start(self, wanted: Range, fetch: Callable[[], memoryview]) -> None:
        """Begin to fetch a range, unless it waits already or there is no room for it."""
        with self._lock:
            if wanted in self._waiting or self._num_bytes + wanted[2] > self.max_bytes:
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_NUM_FETCHERS, thread_name_prefix="prefetch")
            self._num_bytes += wanted[2]
            self._waiting[wanted] = self._pool.submit(fetch)

    def take(self, wanted: Range) -> memoryview | None:
        """What was fetched, once it is there; None if that range was never begun.

        Raises:
            OSError: it could not be fetched.
        """
        with self._lock:
            found = self._waiting.pop(wanted, None)
            if found is None:
                return None
            self._num_bytes -= wanted[2]
        return found.result()
