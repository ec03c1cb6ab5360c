"""Workers that really die, for tests of what the driver does about it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from jobs.plan import Task
from jobs.worker import ReadVideo, Worker
from schemas.index import IndexRow


class MortalWorker(Worker):
    """Dies with SIGKILL in the middle of a task that holds certain videos.

    ``deadly.mp4`` kills its worker every time, ``unlucky.mp4`` the first time only.
    """

    def run_task(self, task: Task) -> Iterator[list[IndexRow]]:
        for ref in task.videos:
            died_before = Path(ref.path).with_suffix(".died")
            if ref.video_id == "deadly.mp4":
                os.kill(os.getpid(), signal.SIGKILL)
            if ref.video_id == "unlucky.mp4" and not died_before.exists():
                died_before.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        yield from super().run_task(task)


class InterruptedWorker(Worker):
    """Meets a Ctrl-C when its second encoder call is due."""

    def _packs(self, videos: Iterator[ReadVideo]) -> Iterator[list[ReadVideo]]:
        for number, group in enumerate(super()._packs(videos)):
            if number == 1:
                raise KeyboardInterrupt
            yield group
