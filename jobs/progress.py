"""What a build says while it runs: a bar on a terminal, a line now and then elsewhere, or JSON."""

import json
import sys
import time
from dataclasses import dataclass, field
from typing import IO

from tqdm import tqdm

from schemas.index import IndexRow

LINE_EVERY_SECONDS = 30.0


@dataclass(slots=True)
class Tally:
    """Counts of one build so far."""

    total: int
    done: int = 0
    failed: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    num_bytes: int = 0
    started: float = field(default_factory=time.monotonic)

    def count(self, row: IndexRow) -> None:
        """Take one finished video into account."""
        if row.status != "ok":
            self.failed += 1
            return
        self.done += 1
        self.tokens_before += row.tokens_before or 0
        self.tokens_after += row.tokens_after or 0
        self.num_bytes += row.num_bytes or 0

    @property
    def finished(self) -> int:
        return self.done + self.failed

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def videos_per_second(self) -> float:
        return self.finished / max(self.seconds, 1e-9)

    @property
    def keep_ratio(self) -> float:
        return self.tokens_after / max(1, self.tokens_before)

    def line(self) -> str:
        """One line for a log file."""
        left = (self.total - self.finished) / self.videos_per_second if self.finished else None
        eta = f"  ETA {left:.0f} s" if left is not None else ""
        return (
            f"{self.finished}/{self.total} videos  {self.videos_per_second:.2f} videos/s  "
            f"kept {self.keep_ratio:.1%} of tokens  {self.failed} failed{eta}"
        )


class Progress:
    """Tells a person or a program how a build goes; ``style`` is "auto", "json" or "none"."""

    def __init__(
        self,
        tally: Tally,
        *,
        style: str = "auto",
        stream: IO[str] | None = None,
        line_every_seconds: float = LINE_EVERY_SECONDS,
    ) -> None:
        self._tally = tally
        self._stream = stream or sys.stderr
        self._is_json = style == "json"
        is_bar = style == "auto" and self._stream.isatty()
        self._every = line_every_seconds if style == "auto" and not is_bar else None
        self._last_line = time.monotonic()
        self._bar = tqdm(
            total=tally.total, unit="video", file=self._stream, disable=not is_bar, smoothing=0.1
        )

    def count(self, row: IndexRow) -> None:
        """One more video is finished."""
        self._tally.count(row)
        tally = self._tally
        self._bar.update()
        self._bar.set_postfix_str(f"kept {tally.keep_ratio:.1%}, {tally.failed} failed")
        if self._is_json:
            event = {
                "event": "video",
                "video_id": row.video_id,
                "status": row.status,
                "error_kind": row.error_kind,
                "tokens_after": row.tokens_after,
                "finished": tally.finished,
                "total": tally.total,
            }
            print(json.dumps(event), file=self._stream, flush=True)
        elif self._every is not None and time.monotonic() - self._last_line >= self._every:
            self._last_line = time.monotonic()
            print(tally.line(), file=self._stream, flush=True)

    def close(self) -> None:
        self._bar.close()
