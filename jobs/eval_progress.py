"""What an evaluation says while it runs, video by video."""

import json
import sys
import time
from typing import Any

import click
from tqdm import tqdm

from jobs.progress import LINE_EVERY_SECONDS


class EvalProgress:
    """A bar on a terminal, a line now and then elsewhere, or JSON lines; on stderr."""

    def __init__(self, total: int, *, style: str) -> None:
        self._style = style
        self._total = total
        self._started = self._told = time.monotonic()
        is_bar = style == "auto" and sys.stderr.isatty()
        self._tells_lines = style == "auto" and not is_bar
        self._bar = tqdm(
            total=total, unit="video", file=sys.stderr, disable=not is_bar, smoothing=0.1
        )
        self._finished = 0

    def note(self, video_id: str) -> None:
        """All questions about one more video are answered."""
        self._finished += 1
        self._bar.update()
        now = time.monotonic()
        if self._style == "json":
            event: dict[str, Any] = {"event": "video", "video_id": video_id}
            event |= {"finished": self._finished, "total": self._total}
            click.echo(json.dumps(event), err=True)
        elif self._tells_lines and now - self._told >= LINE_EVERY_SECONDS:
            self._told = now
            click.echo(self._line(now), err=True)

    def close(self) -> None:
        self._bar.close()

    def _line(self, now: float) -> str:
        rate = self._finished / max(now - self._started, 1e-9)
        left = (self._total - self._finished) / rate
        return f"{self._finished}/{self._total} videos  {rate:.2f} videos/s  ETA {left:.0f} s"
