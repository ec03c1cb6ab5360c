"""The decode child as its reader sees it: a process, a socket, some shared memory."""

import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.decode.wire import Message, receive_message, send_message

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]

_LAST_WORDS_BYTES = 500

_DYING_SECONDS = 5.0


class Deadline:
    """Seconds of waiting that are left; time in which nobody waits is not counted."""

    def __init__(self, seconds: float) -> None:
        self.total_seconds = seconds
        self._waited_seconds = 0.0

    def extend(self, seconds: float) -> None:
        self.total_seconds += seconds

    @property
    def left_seconds(self) -> float:
        return max(self.total_seconds - self._waited_seconds, 0.0)

    @contextmanager
    def waiting(self) -> Iterator[float]:
        """Count the time of the block; gives the seconds that are left."""
        begun = time.monotonic()
        try:
            yield self.left_seconds
        finally:
            self._waited_seconds += time.monotonic() - begun


class ChildProcess:
    """A running ``pipeline.decode.child``, started without forking the caller's memory."""

    def __init__(self) -> None:
        self._memory = _anonymous_file("tokenreel-frames")
        self._log = _anonymous_file("tokenreel-decode-log")
        # The child empties its log before each request: writing goes on at the new end.
        fcntl.fcntl(self._log, fcntl.F_SETFL, os.O_APPEND)
        self._mapped: mmap.mmap | None = None
        self._channel, theirs = socket.socketpair()
        search_path = [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.decode.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search_path))},
            )
        self._is_talking = False
        self.num_requests = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_idle(self) -> bool:
        """Whether it lives and waits for a request."""
        return not self._is_talking and self._process.poll() is None

    @contextmanager
    def conversation(self) -> Iterator[None]:
        """One request and its answers; a conversation broken off midway kills the child."""
        self._is_talking = True
        self.num_requests += 1
        try:
            yield
            self.conversation_ended()
        finally:
            if self._is_talking:
                self.kill()

    def conversation_ended(self) -> None:
        """Note that the child has said its last word on this request."""
        self._is_talking = False

    def send(self, message: Message, *, with_memory: bool = False) -> None:
        send_message(self._channel, message, [self._memory] if with_memory else [])

    def receive(self, deadline: Deadline) -> Message:
        """The child's next message.

        Raises:
            EOFError: the child died.
            TimeoutError: the deadline passed.
        """
        with deadline.waiting() as seconds:
            message, _ = receive_message(self._channel, timeout_seconds=seconds)
        return message

    def slots(self, slot_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """The shared memory as ``(slots, *slot_shape)``; whole slots only."""
        slot_bytes = int(np.prod(slot_shape))
        size = os.fstat(self._memory).st_size
        if self._mapped is None or len(self._mapped) < size:
            # An array may still look at the old mapping: it lives as long as that array.
            self._mapped = mmap.mmap(self._memory, size)
        num_slots = len(self._mapped) // slot_bytes
        flat = np.frombuffer(self._mapped, np.uint8, num_slots * slot_bytes)
        return flat.reshape(num_slots, *slot_shape)

    def last_words(self) -> str:
        """How a dead child ended, and the end of what it wrote."""
        try:
            code = self._process.wait(_DYING_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        ending = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        size = os.fstat(self._log).st_size
        tail = os.pread(self._log, _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES))
        lines = tail.decode("utf-8", "replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{ending}: {said}" if said else ending

    def stop(self) -> None:
        """End the process; whoever talks to it is told that it died."""
        self._process.kill()

    def kill(self) -> None:
        """End the process at once and give back its memory. May be called twice."""
        self._is_talking = False
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._channel.close()
        self._mapped = None
        for fd in (self._memory, self._log):
            if fd >= 0:
                os.close(fd)
        self._memory = self._log = -1


def _anonymous_file(name: str) -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    fd, path = tempfile.mkstemp(prefix=name)
    Path(path).unlink()
    return fd
