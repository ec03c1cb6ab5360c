"""Workers that really die, hang or are interrupted, for tests of what the driver does about it."""

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from jobs.events import Event
from jobs.read_ahead import Frames, ReadVideo
from jobs.worker import Worker
from pipeline.encoders import VisualTokens
from schemas.video import VideoProbe

HANGING_WIDTH = 1280


class MortalWorker(Worker):
    """Dies with SIGKILL in an encoder call that holds certain videos.

    A video whose name begins with ``deadly`` kills its worker every time, ``unlucky.mp4`` the
    first time only. An encoder call holds two videos or more while there are so many, so that
    those who kill have neighbours.
    """

    def _collect(self) -> tuple[list[ReadVideo], list[Event]]:
        pack, events = super()._collect()
        while len(pack) == 1 and self._num_unassembled > 1:
            more, news = super()._collect()
            pack, events = pack + more, events + news
        return pack, events

    def _encode(self, videos: Sequence[ReadVideo]) -> list[VisualTokens]:
        for ref in (video.ref for video in videos):
            died_before = Path(ref.path).with_suffix(".died")
            if ref.video_id.startswith("deadly"):
                os.kill(os.getpid(), signal.SIGKILL)
            if ref.video_id == "unlucky.mp4" and not died_before.exists():
                died_before.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super()._encode(videos)


class StrandedWorker(Worker):
    """Dies with ``stranded.mp4`` at first, and the next time never ends with it.

    It leaves a file ``stranded.died``, then a file ``stranded.node`` with the id of its node.
    """

    def _encode(self, videos: Sequence[ReadVideo]) -> list[VisualTokens]:
        import ray

        for path in (Path(video.ref.path) for video in videos):
            died, stuck = path.with_suffix(".died"), path.with_suffix(".node")
            if path.name == "stranded.mp4" and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if path.name == "stranded.mp4" and not stuck.exists():
                stuck.with_suffix(".tmp").write_text(ray.get_runtime_context().get_node_id())
                stuck.with_suffix(".tmp").rename(stuck)
                threading.Event().wait()
        return super()._encode(videos)


class HangingWorker(Worker):
    """Stops its decode child in the middle of a video that is ``HANGING_WIDTH`` wide.

    The video must have more frames than fit in the memory shared with a child.
    """

    def _resize(self, frames: Frames, probe: VideoProbe, num_frames: int) -> Frames:
        if probe.width == HANGING_WIDTH:
            stop_decode_children()
        return super()._resize(frames, probe, num_frames)


class InterruptedWorker(Worker):
    """Meets a Ctrl-C when its second encoder call is due."""

    num_calls = 0

    def _encode(self, videos: Sequence[ReadVideo]) -> list[VisualTokens]:
        self.num_calls += 1
        if self.num_calls == 2:
            raise KeyboardInterrupt
        return super()._encode(videos)


def stop_decode_children() -> None:
    """Make all decode children of this process hang."""
    for thread in Path("/proc/self/task").iterdir():
        for pid in (thread / "children").read_text().split():
            if "pipeline.decode.child" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(int(pid), signal.SIGSTOP)
