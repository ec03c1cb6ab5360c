"""Videos that fail: how they are recorded, and when there are too many of them."""

import time
from dataclasses import dataclass

from schemas.errors import (
    DecodeError,
    FailureBudgetExceeded,
    FusionError,
    PreprocessError,
    WorkerDiedError,
)
from schemas.index import IndexRow
from schemas.video import VideoRef

PROBATION_VIDEOS = 100
"""Videos tried before a failure budget given as a fraction counts."""

_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (PreprocessError, "preprocess"),
    (FusionError, "fusion"),
    (WorkerDiedError, "worker_died"),
)


def error_kind(error: Exception) -> str:
    """The index's word for an error: a decode kind, a stage, or ``internal``."""
    if isinstance(error, DecodeError):
        return error.kind
    return next((kind for type_, kind in _KINDS if isinstance(error, type_)), "internal")


def created_now(newer_than_ns: int) -> int:
    """The time for a new index row: now, but always after the row it replaces."""
    return max(time.time_ns(), newer_than_ns + 1)


def failed_row(
    ref: VideoRef,
    error: Exception,
    *,
    fingerprint: str,
    attempts: int,
    writer: str,
    content_sha256: str | None = None,
    newer_than_ns: int = 0,
) -> IndexRow:
    """The index row of a video that failed; a worker's death quarantines it."""
    kind = error_kind(error)
    message = str(error) if kind != "internal" else f"{type(error).__name__}: {error}"
    printable = message.encode("utf-8", "backslashreplace").decode("utf-8")
    return IndexRow(
        video_id=ref.video_id,
        path=ref.printable_path,
        status="quarantined" if isinstance(error, WorkerDiedError) else "failed",
        fingerprint=fingerprint,
        size_bytes=ref.size_bytes,
        modified_ns=ref.modified_ns,
        created_ns=created_now(newer_than_ns),
        writer=writer,
        attempts=attempts,
        error_kind=kind,
        error_message=" ".join(printable.split())[:2000],
        content_sha256=content_sha256,
        extra=ref.extra,
    )


@dataclass(slots=True)
class FailureBudget:
    """Counts failures; ``limit`` is a count (int), a fraction (float) or None for no limit."""

    limit: float | int | None
    tried: int = 0
    failed: int = 0

    def count(self, row: IndexRow) -> None:
        """Take one finished video into account.

        Raises:
            FailureBudgetExceeded: more failures than the limit allows.
        """
        self.tried += 1
        if row.status == "ok":
            return
        self.failed += 1
        if self.exceeded:
            raise FailureBudgetExceeded(
                f"{self.failed} of {self.tried} videos failed, the budget is {self.limit}. "
                "Everything finished so far is in the cache: see `tokenreel status --failed`, then "
                "build again with --retry-failed or a larger --max-failures"
            )

    @property
    def exceeded(self) -> bool:
        if self.limit is None:
            return False
        if isinstance(self.limit, float):
            return self.tried >= PROBATION_VIDEOS and self.failed > self.limit * self.tried
        return self.failed > self.limit
