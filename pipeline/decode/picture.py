"""A decoded frame as the picture that ffmpeg shows: upright, in RGB, of the video's size.

FFmpeg's own filters do all of it, put together as the ``ffmpeg`` command puts them together
(``configure_input_video_filter`` in fftools/ffmpeg_filter.c). Calling swscale directly gives other
pixels for interlaced, odd-sized and 10-bit frames, and takes longer.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame

from schemas.errors import DecodeError
from schemas.video import VideoProbe

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a frame is to be turned to stand upright.

    ``filters`` are names and arguments of FFmpeg filters. ``rotation`` is in degrees
    counter-clockwise, 0 to 359; ``is_mirrored`` says whether left and right are exchanged as well.
    """

    filters: tuple[tuple[str, str], ...] = ()
    rotation: int = 0
    is_mirrored: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> Self:
        """What the display matrix of ``frame`` says, read as the ``ffmpeg`` command reads it."""
        matrix = _display_matrix(frame)
        if matrix is None:
            return cls()
        columns = [math.hypot(matrix[0], matrix[3]), math.hypot(matrix[1], matrix[4])]
        if not all(columns):
            return cls()
        clockwise = round(math.degrees(math.atan2(matrix[1] / columns[1], matrix[0] / columns[0])))
        return cls(
            filters=_filters(matrix, clockwise % 360),
            rotation=-clockwise % 360,
            is_mirrored=matrix[0] * matrix[4] < matrix[1] * matrix[3],
        )

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the upright picture."""
        return (height, width) if self.rotation in (90, 270) else (width, height)


class PictureMaker:
    """Makes pictures from the frames of one video.

    A frame of another size than the video's is scaled to it, as ``ffmpeg`` does, and counted in
    ``num_rescaled``.

    Args:
        path: the video, for messages.
        probe: says how large the pictures are to be.
        orientation: that of frames which do not say their own; an encoder may say it once.
        may_rescale: whether frames of another size are scaled or refused.
    """

    def __init__(
        self, path: str, probe: VideoProbe, orientation: Orientation, *, may_rescale: bool
    ) -> None:
        self._path = path
        self._size = (probe.width, probe.height)
        self._may_rescale = may_rescale
        self._key: tuple[object, ...] = ()
        self._graph = Graph()
        self._usual_orientation = self._orientation = orientation
        self.num_rescaled = 0

    def __call__(self, frame: VideoFrame) -> Image:
        """``frame`` as ``(height, width, 3)`` RGB.

        Raises:
            DecodeError: "mixed_sizes", the frame has another size and may not be rescaled.
        """
        key = (
            *(frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range),
            *(_display_matrix(frame) or ()),
        )
        if key != self._key:
            has_own = _display_matrix(frame) is not None
            self._orientation = Orientation.of(frame) if has_own else self._usual_orientation
            self._graph = self._new_graph(frame)
            self._key = key
        self._check_size(self._orientation.size(frame.width, frame.height))
        self._graph.push(frame)
        picture = self._graph.pull()
        assert isinstance(picture, VideoFrame)
        return picture.to_ndarray().astype(np.uint8, copy=False)

    def _check_size(self, size: tuple[int, int]) -> None:
        if size == self._size:
            return
        if not self._may_rescale:
            raise DecodeError(
                "mixed_sizes",
                f"{self._path} changes its frame size midway, from {self._size[0]}x"
                f"{self._size[1]} to {size[0]}x{size[1]}: cut it where the size changes, or set "
                'decode.size_changes = "scale"',
            )
        self.num_rescaled += 1

    def _new_graph(self, frame: VideoFrame) -> Graph:
        width, height = self._size
        graph = Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=frame.time_base,
        )
        filters = (
            *self._orientation.filters,
            ("scale", f"w={width}:h={height}:flags=bicubic"),
            ("format", "rgb24"),
        )
        graph.link_nodes(
            source,
            *(graph.add(name, arguments) for name, arguments in filters),
            graph.add("buffersink"),
        ).configure()
        return graph


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    """Nine numbers of 16.16 and 2.30 bits by rows, if the frame has a display matrix."""
    # PyAV declares its side data a mapping of names; it is one of types.
    side_data: Any = frame.side_data
    matrix = side_data.get(Type.DISPLAYMATRIX)
    return None if matrix is None else tuple(np.frombuffer(matrix, np.int32).tolist())


def _filters(matrix: tuple[int, ...], clockwise: int) -> tuple[tuple[str, str], ...]:
    if clockwise == 90:
        return (("transpose", "cclock_flip" if matrix[3] > 0 else "clock"),)
    if clockwise == 270:
        return (("transpose", "clock_flip" if matrix[3] < 0 else "cclock"),)
    if clockwise == 180:
        flips = (("hflip", ""), ("vflip", ""))
        return tuple(f for f, side in zip(flips, (matrix[0], matrix[4]), strict=True) if side < 0)
    if clockwise == 0:
        return (("vflip", ""),) if matrix[4] < 0 else ()
    return (("rotate", f"{clockwise}*PI/180"),)
