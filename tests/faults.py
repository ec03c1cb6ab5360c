"""Workers that really die, for tests of what the driver does about it."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from jobs.read_ahead import ReadVideo
from jobs.worker import Worker
from pipeline.encoders import VisualTokens


class MortalWorker(Worker):
    """Dies with SIGKILL in an encoder call that holds certain videos.

    ``deadly.mp4`` kills its worker every time, ``unlucky.mp4`` the first time only.
    """

    def _encode(self, videos: Sequence[ReadVideo]) -> list[VisualTokens]:
        for ref in (video.ref for video in videos):
            died_before = Path(ref.path).with_suffix(".died")
            if ref.video_id == "deadly.mp4":
                os.kill(os.getpid(), signal.SIGKILL)
            if ref.video_id == "unlucky.mp4" and not died_before.exists():
                died_before.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super()._encode(videos)


class InterruptedWorker(Worker):
    """Meets a Ctrl-C when its second encoder call is due."""

    num_calls = 0

    def _encode(self, videos: Sequence[ReadVideo]) -> list[VisualTokens]:
        self.num_calls += 1
        if self.num_calls == 2:
            raise KeyboardInterrupt
        return super()._encode(videos)
