"""What a build says while it runs: a bar on a terminal, a line now and then elsewhere, or JSON."""

import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import IO

import click
from tqdm import tqdm

from jobs.events import Assembled, Committed, Event, Lost
from schemas.index import IndexRow

LINE_EVERY_SECONDS = 30.0

MAX_FAILURES_KEPT = 100


@dataclass(slots=True)
class Tally:
    """Counts of one build so far.

    ``waiting`` are the ids of videos that are encoded and not yet committed; ``first_failures``
    the rows of the first failures, however many there are.
    """

    total: int
    done: int = 0
    failed: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    num_bytes: int = 0
    waiting: set[str] = field(default_factory=set)
    failed_by_kind: Counter[str] = field(default_factory=Counter)
    first_failures: list[IndexRow] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def note(self, event: Event) -> None:
        """Take an event into account."""
        if isinstance(event, Assembled):
            self.waiting.update(event.video_ids)
        elif isinstance(event, Committed):
            for row in event.rows:
                self.waiting.discard(row.video_id)
                self._count(row)
        else:
            self.waiting.difference_update(event.video_ids)

    def _count(self, row: IndexRow) -> None:
        if row.status != "ok":
            self.failed += 1
            self.failed_by_kind[row.error_kind or ""] += 1
            if len(self.first_failures) < MAX_FAILURES_KEPT:
                self.first_failures.append(row)
            return
        self.done += 1
        self.tokens_before += row.tokens_before or 0
        self.tokens_after += row.tokens_after or 0
        self.num_bytes += row.num_bytes or 0

    @property
    def committed(self) -> int:
        return self.done + self.failed

    @property
    def finished(self) -> int:
        """Videos that need no more work, though some may wait for their commit."""
        return self.committed + len(self.waiting)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def videos_per_second(self) -> float:
        return self.finished / max(self.seconds, 1e-9)

    @property
    def keep_ratio(self) -> float:
        return self.tokens_after / max(1, self.tokens_before)

    @property
    def kept(self) -> str:
        """The share of tokens kept, as text; unknown before the first commit."""
        return f"kept {self.keep_ratio:.1%}" if self.tokens_before else "kept ?"

    def line(self) -> str:
        """One line for a log file."""
        left = (self.total - self.finished) / self.videos_per_second if self.finished else None
        eta = f"  ETA {left:.0f} s" if left is not None else ""
        return (
            f"{self.finished}/{self.total} videos  {self.videos_per_second:.2f} videos/s  "
            f"{self.kept} of tokens  {self.failed} failed{eta}"
        )


def say_line(text: str, style: str) -> None:
    """A remark on stderr: as it is, or with style "json" as an object of a line."""
    if style != "none":
        click.echo(_remark_line(text, is_json=style == "json"), err=True)


def _remark_line(text: str, *, is_json: bool) -> str:
    return json.dumps({"event": "note", "text": text}) if is_json else text


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
        self._style = style
        self._is_json = style == "json"
        is_bar = style == "auto" and self._stream.isatty()
        self._bar = tqdm(
            total=tally.total, unit="video", file=self._stream, disable=not is_bar, smoothing=0.1
        )
        self._closed = threading.Event()
        if style == "auto" and not is_bar:
            threading.Thread(target=self._tick, args=(line_every_seconds,), daemon=True).start()

    def note(self, event: Event) -> None:
        """Something happened to some videos."""
        self._tally.note(event)
        self._bar.update(self._tally.finished - self._bar.n)
        self._bar.set_postfix_str(f"{self._tally.kept}, {self._tally.failed} failed")
        if isinstance(event, Lost):
            self._remark(f"a worker died, its videos are done again: {event.reason}")
        elif self._is_json and isinstance(event, Committed):
            for row in event.rows:
                self._say_json(row)

    def close(self) -> None:
        self._closed.set()
        self._bar.close()

    def _remark(self, text: str) -> None:
        if self._style != "none":
            line = _remark_line(text, is_json=self._is_json)
            self._bar.write(line, file=self._stream)

    def _tick(self, every_seconds: float) -> None:
        """A line now and then, also while nothing happens."""
        while not self._closed.wait(every_seconds):
            print(self._tally.line(), file=self._stream, flush=True)

    def _say_json(self, row: IndexRow) -> None:
        event = {
            "event": "video",
            "video_id": row.video_id,
            "status": row.status,
            "error_kind": row.error_kind,
            "tokens_after": row.tokens_after,
            "finished": self._tally.finished,
            "total": self._tally.total,
        }
        print(json.dumps(event), file=self._stream, flush=True)
