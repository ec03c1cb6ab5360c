"""A video as the corpus names it, as the demuxer describes it, and as it was sampled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # a decode child has no use for Arrow
    import pyarrow as pa

Scalar: TypeAlias = "str | int | float | bool | pa.Scalar | None"
"""A value of a further manifest column; what is no text, bool, int64 or double keeps its type."""


@dataclass(frozen=True, slots=True)
class VideoRef:
    """One video of the corpus, not yet opened.

    ``size_bytes`` and ``modified_ns`` are -1 when the file does not exist.
    """

    video_id: str
    path: str
    size_bytes: int
    modified_ns: int
    extra: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def printable_path(self) -> str:
        """The path for the index: bytes that are not UTF-8 are written as escapes."""
        return self.path.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class VideoProbe:
    """What the packets of a video say; nothing was decoded.

    ``stream_index`` is the place of the video stream in its container. Width and height are as
    displayed, after ``rotation`` (degrees counter-clockwise) and, when ``is_mirrored``, an exchange
    of left and right. ``num_frames`` counts the frames that are shown: packets an edit list
    discards do not count. ``num_declared_frames`` is the container's own count, 0 when it gives
    none. ``decord_objection`` says why decord may not be trusted with this file; empty when it may.
    """

    container: str
    stream_index: int
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    is_mirrored: bool
    fps: float
    duration_seconds: float
    num_frames: int
    num_declared_frames: int
    decord_objection: str


@dataclass(frozen=True, slots=True, eq=False)
class SampledFrames:
    """The sampled frames of one video.

    ``frames`` is ``(n, height, width, 3)`` uint8 RGB; ``frame_indices`` ``(n,)`` int64 are the
    display-order indices of these frames in the source. ``num_rescaled_frames`` of
    them had another size than the first frame and were scaled to it.
    """

    frames: npt.NDArray[np.uint8]
    frame_indices: npt.NDArray[np.int64]
    probe: VideoProbe
    decoder: str
    decoder_version: str
    num_bad_packets: int
    num_rescaled_frames: int = 0

    def __repr__(self) -> str:
        return (
            f"SampledFrames(frames={self.frames.shape}, decoder={self.decoder!r}, "
            f"num_bad_packets={self.num_bad_packets})"
        )
