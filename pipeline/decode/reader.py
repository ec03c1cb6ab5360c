"""Frames of videos for the rest of the program, whatever happens to the decoder."""

import dataclasses
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from pipeline.decode.child_process import ChildProcess, Deadline
from pipeline.decode.wire import Message
from schemas.config import DecodeConfig, SamplingConfig
from schemas.errors import ConfigError, DecodeError
from schemas.video import SampledFrames, VideoProbe

Images = npt.NDArray[np.uint8]
Resize = Callable[[Images, VideoProbe, int], Images]

RECYCLE_AFTER = 500
"""Requests after which a child is replaced: decord grows with every file it opens."""

MAX_BILLED_SECONDS = 12 * 3600.0
"""A video that claims to be longer gets no more time for it."""

_SALVAGEABLE = ("corrupt_frames", "truncated")


class FrameReader:
    """Samples frames of one video after another, decoding in a child process of its own.

    The child starts with the first video, is killed when a video passes its deadline, and is
    replaced when it died or grew old. One thread at a time may use a reader; the child lives no
    longer than the thread that started it (Linux ends it with its parent thread).

    Args:
        decode: which decoder, limits and deadlines.
        sampling: which frames.

    Raises:
        ConfigError: decord was demanded but is not installed.
    """

    def __init__(self, decode: DecodeConfig, sampling: SamplingConfig) -> None:
        if decode.decoder == "decord" and find_spec("decord") is None:
            raise ConfigError(
                "decode.decoder = 'decord', but decord is not installed: "
                "pip install decord, or use --decoder auto"
            )
        self._decode = decode
        self._sampling = sampling
        self._child: ChildProcess | None = None
        self._is_interrupted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child; a later read starts another."""
        if self._child:
            self._child.kill()
            self._child = None

    def interrupt(self) -> None:
        """Make a read that goes on in another thread fail soon, and every later one."""
        self._is_interrupted = True
        child = self._child
        if child:
            child.stop()

    @property
    def child_pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return self._child.pid if self._child else None

    def probe(self, path: str | os.PathLike[str]) -> VideoProbe:
        """What the packets of a video say; its frames are not decoded.

        Raises:
            DecodeError: the video is not fit to be decoded, or its scan crashed or took too long.
        """
        return _Request(
            self._ready_child(), self._request("probe", path, "auto"), self._decode
        ).probe()

    def read(self, path: str | os.PathLike[str], *, resize: Resize | None = None) -> SampledFrames:
        """Sample the frames of one video.

        Args:
            path: the video.
            resize: called with each batch ``(n, height, width, 3)`` uint8, the probe and the
                number of sampled frames; returns the batch in another size. The batch lies in
                memory shared with the child and holds these frames only during the call.

        Raises:
            DecodeError: no frame of this video can be trusted; ``kind`` says why.
        """
        decoder = self._decode.decoder
        while True:
            request = _Request(
                self._ready_child(), self._request("read", path, decoder), self._decode
            )
            try:
                return request.read(resize)
            except DecodeError as error:
                if request.decoder != "pyav" or error.kind not in _SALVAGEABLE:
                    raise
                decoder = "salvage"

    def _ready_child(self) -> ChildProcess:
        if self._child and (self._child.num_requests >= RECYCLE_AFTER or not self._child.is_idle):
            self.close()
        if not self._child:
            self._child = ChildProcess()
        if self._is_interrupted:
            self.close()
            raise DecodeError("decoder_crash", "the reader was interrupted; build again to resume")
        return self._child

    def _request(self, op: str, path: str | os.PathLike[str], decoder: str) -> Message:
        return {
            "op": op,
            "path": os.path.abspath(os.fspath(path)),  # noqa: PTH100 - Path would eat a trailing "/"
            "decoder": decoder,
            "max_frame_pixels": self._decode.max_frame_pixels,
            "may_rescale": self._decode.size_changes == "scale",
            "threads": self._decode.threads,
            "sampling": dataclasses.asdict(self._sampling),
        }


def decoder_versions(decoder: str) -> dict[str, str]:
    """Versions of the libraries that the policy ``decoder`` may use; nothing is imported."""
    names = ("av", "decord") if decoder == "decord" else ("av",)
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class _Request:
    """One conversation with the child about one video, billed against one deadline."""

    def __init__(self, child: ChildProcess, request: Message, config: DecodeConfig) -> None:
        self._child = child
        self._message = request
        self._config = config
        self._deadline = Deadline(config.deadline_seconds)
        self.decoder = ""
        """What the child decided to decode with; empty until it said so."""

    def probe(self) -> VideoProbe:
        with self._child.conversation():
            self._send()
            probe = self._probed()
            self._expect("done")
        return probe

    def read(self, resize: Resize | None) -> SampledFrames:
        with self._child.conversation():
            self._send()
            self._probed()
            sampled = self._expect("sampled")
            probe = VideoProbe(**sampled["probe"])
            frames = self._receive_frames(sampled, probe, resize)
            done = self._expect("done")
        library = "decord" if self.decoder == "decord" else "av"
        return SampledFrames(
            frames=frames,
            frame_indices=np.array(sampled["frame_indices"], dtype=np.int64),
            probe=probe,
            decoder="decord" if self.decoder == "decord" else "pyav",
            decoder_version=version(library),
            num_bad_packets=sampled["num_bad_packets"],
            num_rescaled_frames=done["num_rescaled_frames"],
        )

    def _send(self) -> None:
        try:
            self._child.send(self._message, with_memory=True)
        except OSError as error:
            raise self._crashed() from error

    def _probed(self) -> VideoProbe:
        probed = self._expect("probed")
        self.decoder = probed["decoder"]
        probe = VideoProbe(**probed["probe"])
        # A second per frame is generous, and keeps a lie about the duration cheap.
        billed = min(probe.duration_seconds, float(probe.num_frames), MAX_BILLED_SECONDS)
        self._deadline.extend(self._config.deadline_per_second * billed)
        return probe

    def _receive_frames(self, sampled: Message, probe: VideoProbe, resize: Resize | None) -> Images:
        total, num_done = len(sampled["frame_indices"]), 0
        frames: Images | None = None
        slots = self._child.slots((sampled["frames_per_slot"], probe.height, probe.width, 3))
        while num_done < total:
            message = self._expect("frames")
            batch = slots[message["slot"], : message["num_frames"]]
            resized = resize(batch, probe, total) if resize else batch
            if frames is None:
                frames = np.empty((total, *resized.shape[1:]), resized.dtype)
            frames[num_done : num_done + len(batch)] = resized
            num_done += len(batch)
            try:
                self._child.send({"op": "release"})
            except OSError as error:
                raise self._crashed() from error
        assert frames is not None
        return frames

    def _expect(self, event: str) -> Message:
        path = self._message["path"]
        try:
            message = self._child.receive(self._deadline)
        except TimeoutError as error:
            raise DecodeError(
                "timeout",
                f"{path}: decoding passed its deadline of {self._deadline.total_seconds:g} s and "
                "was killed; raise decode.deadline_seconds or decode.deadline_per_second",
            ) from error
        except EOFError as error:
            raise self._crashed() from error
        if message["event"] == "failed":
            self._child.conversation_ended()
            raise DecodeError(message["kind"], message["message"])
        if message["event"] != event:
            raise DecodeError(
                "decoder_crash",
                f"{path}: the decode child said {message['event']!r}, not {event!r}",
            )
        return message

    def _crashed(self) -> DecodeError:
        return DecodeError(
            "decoder_crash",
            f"{self._message['path']}: the decode child died ({self._child.last_words()}); "
            "the file may be hostile to the decoder, or memory ran out",
        )
