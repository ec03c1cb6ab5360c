"""Reading ahead of the encoder: threads with a decode child each, bounded by what waits."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from jobs.plan import Task
from jobs.room import Room
from pipeline.decode import FrameReader
from pipeline.storage.remote import file_digest, local_copy
from schemas.config import BuildConfig
from schemas.errors import DecodeError, TokenreelError
from schemas.video import SampledFrames, VideoProbe, VideoRef

Frames = npt.NDArray[np.uint8]
Resize = Callable[[Frames, VideoProbe, int], Frames]
Deliver = Callable[["ReadVideo | Exception"], None]


@dataclass(frozen=True, slots=True)
class ReadVideo:
    """A video read, resized and hashed, waiting for the encoder; or the error that stopped it."""

    ref: VideoRef
    attempts: int
    newer_than_ns: int
    sampled: SampledFrames | None
    content_sha256: str | None
    decode_seconds: float
    error: Exception | None = None

    @property
    def num_bytes(self) -> int:
        return self.sampled.frames.nbytes if self.sampled else 0


class ReadAhead:
    """Reads videos in the order given and delivers each as soon as it is done.

    Args:
        config: ``decode.children`` videos are read at once, and no further one is begun while
            ``decode.read_ahead_bytes`` of frames wait.
        resize: as in ``FrameReader.read``.
        deliver: called from the reading threads, which must not be held up; with an error when
            videos cannot be fetched at all, and with none of them after it.
    """

    def __init__(self, config: BuildConfig, resize: Resize, deliver: Deliver) -> None:
        self._resize = resize
        self._deliver = deliver
        self._room = Room(config.decode.read_ahead_bytes)
        self._is_closed = False
        self._todo: SimpleQueue[Task | None] = SimpleQueue()
        self._readers = [
            FrameReader(config.decode, config.sampling) for _ in range(config.decode.children)
        ]
        self._threads = [
            threading.Thread(target=self._serve, args=(reader,), name="read", daemon=True)
            for reader in self._readers
        ]
        for thread in self._threads:
            thread.start()

    def add(self, tasks: Sequence[Task]) -> None:
        """Queue more videos."""
        for task in tasks:
            self._todo.put(task)

    def taken(self, video: ReadVideo) -> None:
        """Say that a delivered video waits no more."""
        self._room.leave(video.num_bytes)

    def interrupt(self) -> None:
        """End the decode children at once; a video in the middle is not delivered."""
        self._is_closed = True
        self._room.close()
        for reader in self._readers:
            self._todo.put(None)
            reader.interrupt()

    def close(self) -> None:
        """Interrupt, and wait until nothing is read any more."""
        self.interrupt()
        for thread in self._threads:
            thread.join()

    def _serve(self, reader: FrameReader) -> None:
        with reader:
            while (task := self._todo.get()) is not None and self._room.wait():
                read = self._read(reader, task)
                if self._is_closed:  # whoever was broken off has not failed
                    return
                if isinstance(read, Exception):
                    self._deliver(read)
                    return
                self._room.enter(read.num_bytes)
                self._deliver(read)

    def _read(self, reader: FrameReader, task: Task) -> ReadVideo | Exception:
        ref = task.ref
        video = ReadVideo(ref, task.attempts + 1, task.newer_than_ns, None, None, 0.0)
        started = time.perf_counter()
        try:
            with local_copy(ref.path, is_wanted=lambda: not self._is_closed) as path:
                digest, sampled = self._sample(reader, ref.path, path)
        except (FileNotFoundError, PermissionError) as error:
            return replace(video, error=_unfetched(ref.path, error))
        except OSError as error:
            return TokenreelError(
                f"{ref.path} cannot be fetched: {error.strerror or error}. Nothing finished is "
                "lost: run the same command again once the store answers and TMPDIR has room."
            )
        except Exception as error:  # whatever is wrong with one video becomes its failed row
            return replace(video, error=error)
        if isinstance(sampled, Exception):
            return replace(video, content_sha256=digest, error=sampled)
        seconds = time.perf_counter() - started
        return replace(video, sampled=sampled, content_sha256=digest, decode_seconds=seconds)

    def _sample(
        self, reader: FrameReader, name: str, path: str
    ) -> tuple[str | None, SampledFrames | Exception]:
        """The digest of the file at ``path`` and its frames; errors speak of it as ``name``."""
        digest = None
        try:
            if Path(path).is_file():
                digest = file_digest(path)
            return digest, reader.read(path, resize=self._resize)
        except DecodeError as error:
            return digest, DecodeError(error.kind, error.message.replace(path, name))
        except Exception as error:  # whatever is wrong with one video becomes its failed row
            return digest, error


def _unfetched(url: str, error: OSError) -> DecodeError:
    kind = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
    return DecodeError(kind, f"{url}: it cannot be fetched: {error.strerror or error}")
