"""How much may wait between two stages."""

import threading


class Room:
    """Counts the bytes that wait for the next stage and holds back whoever would add to too many.

    One item may always enter an empty room, whatever its size.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._num_bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def wait(self) -> bool:
        """Wait until less than the limit is inside; False when the room was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._num_bytes < self._limit_bytes)
            return not self._is_closed

    def enter(self, num_bytes: int) -> None:
        with self._changed:
            self._num_bytes += num_bytes

    def leave(self, num_bytes: int) -> None:
        with self._changed:
            self._num_bytes -= num_bytes
            self._changed.notify_all()

    def close(self) -> None:
        """Let everybody go who waits, and never hold anybody again."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
