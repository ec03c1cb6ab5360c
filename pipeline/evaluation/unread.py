"""Videos that could not be read while questions were asked: kept for one error at the end."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import CacheCorruptError, CacheUnreachableError

SHOWN = 3
"""Videos that a message names."""

MOST_UNREACHABLE = 3
"""Videos in a row that cannot be reached before nothing more is tried: the place itself is away."""


class UnreadVideos:
    """Lets a run go on past videos that are damaged or cannot be read.

    Args:
        location: of the cache.
        answers: the file where answers are kept.
    """

    def __init__(self, location: str, answers: Path) -> None:
        self._location = location
        self._answers = answers
        self._errors: dict[str, CacheCorruptError | CacheUnreachableError] = {}
        self._in_a_row = 0

    @contextmanager
    def collecting(self, video_id: str) -> Iterator[None]:
        """Keep the error of reading this video.

        Raises:
            CacheUnreachableError: as ``raise_any``, after ``MOST_UNREACHABLE`` in a row.
        """
        try:
            yield
        except CacheCorruptError as error:
            self._errors[video_id] = error
            self._in_a_row = 0
        except CacheUnreachableError as error:
            self._errors[video_id] = error
            self._in_a_row += 1
            if self._in_a_row == MOST_UNREACHABLE:
                self.raise_any()
        else:
            self._in_a_row = 0

    def raise_any(self) -> None:
        """Raise if a video could not be read.

        Raises:
            CacheCorruptError: at least one of them is damaged.
            CacheUnreachableError: otherwise.
        """
        if not self._errors:
            return
        causes = list(self._errors.items())
        told = "; ".join(f"{video_id!r} ({error})" for video_id, error in causes[:SHOWN])
        more = f"; and {len(causes) - SHOWN} more" if len(causes) > SHOWN else ""
        is_damaged = any(isinstance(error, CacheCorruptError) for _, error in causes)
        kind = CacheCorruptError if is_damaged else CacheUnreachableError
        raise kind(
            f"{len(causes)} videos could not be read: {told}{more}. "
            f"What is answered is kept in {self._answers}. "
            f"{self._damage_advice() if is_damaged else _OUTAGE_ADVICE}"
        ) from causes[0][1]

    def _damage_advice(self) -> str:
        verb = f"tokenreel verify {shlex.quote(self._location)} --discard"
        return (
            f"Take what is damaged out of service with `{verb}` and build again, or give "
            "--skip-missing after the discard to leave its questions out; then the same command "
            "goes on."
        )


_OUTAGE_ADVICE = "Make them readable (permissions, mounts, network); then the same command goes on."
