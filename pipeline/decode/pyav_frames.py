"""Wanted frames of an undamaged video, decoded with PyAV and told apart by their pts."""

from collections.abc import Iterator, Sequence

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.decode.container import VideoPacket, open_video, read_packets, use_decoder
from pipeline.decode.picture import Image, PictureMaker
from pipeline.decode.timeline import Keyframe, Timeline
from schemas.errors import DecodeError


class _LostFrameError(Exception):
    """Decoding from a keyframe did not bring a wanted frame; from the start it may."""


def decode_frames(
    path: str,
    timeline: Timeline,
    wanted: Sequence[int],
    pictures: PictureMaker,
    *,
    threads: int,
    max_frame_pixels: int,
) -> Iterator[Image]:
    """Yield the frame of each display index in ``wanted`` as ``(height, width, 3)`` RGB.

    Decoding jumps to a keyframe where that saves work. Should a jump not lead to the frame that
    was asked for, the rest is decoded from the start.

    Args:
        path: the video.
        timeline: its scan.
        wanted: display indices, ascending, none twice.
        pictures: makes pictures of the frames.
        threads: decoder threads.
        max_frame_pixels: limit on width x height.

    Raises:
        DecodeError: "corrupt_frames" or "truncated" (a wanted frame does not come out right),
            "mixed_sizes".
    """
    num_done = 0
    stream_index = timeline.probe.stream_index
    for may_seek in (timeline.can_seek, False):
        with open_video(path, timeline.demuxer, stream_index=stream_index) as (container, stream):
            use_decoder(stream, threads=threads, max_frame_pixels=max_frame_pixels)
            source = _FrameSource(container, stream, timeline, may_seek=may_seek)
            try:
                for index in wanted[num_done:]:
                    yield pictures(source.frame(index))
                    num_done += 1
            except _LostFrameError as error:
                if not may_seek:
                    raise DecodeError(
                        "truncated",
                        f"{path}: frame {wanted[num_done]} of "
                        f"{timeline.probe.num_frames} does not come out of the decoder ({error})",
                    ) from error
            except av.error.FFmpegError as error:
                if not may_seek:
                    raise DecodeError(
                        "corrupt_frames",
                        f"{path} has a damaged packet before frame {wanted[num_done]}: "
                        f"{error.strerror}",
                    ) from error
            else:
                return


class _FrameSource:
    """Frames in display order, from wherever the last jump led."""

    def __init__(
        self, container: InputContainer, stream: VideoStream, timeline: Timeline, *, may_seek: bool
    ) -> None:
        self._container = container
        self._stream = stream
        self._timeline = timeline
        self._may_seek = may_seek
        self._next_rank = 0
        self._num_shown = 0
        self._frames = self._decoded(None)

    def frame(self, index: int) -> VideoFrame:
        """The frame of display index ``index``, later than any asked for before."""
        if self._timeline.is_counted:
            return self._counted_frame(index)
        keyframe = self._timeline.keyframe_before(index) if self._may_seek else None
        if keyframe and keyframe.rank > self._next_rank:
            self._jump(keyframe)
        wanted = int(self._timeline.shown_labels[index])
        for frame in self._frames:
            if frame.pts == wanted and not frame.is_corrupt:
                return frame
            if frame.pts is not None and frame.pts >= wanted:
                raise _LostFrameError(f"the one at {frame.pts} came where {wanted} was due")
        raise _LostFrameError(f"the stream ended before {wanted}")

    def _counted_frame(self, index: int) -> VideoFrame:
        for frame in self._frames:
            self._num_shown += 1
            if self._num_shown > index:
                return frame
        raise _LostFrameError(f"only {self._num_shown} frames were decoded")

    def _jump(self, keyframe: Keyframe) -> None:
        self._container.seek(keyframe.pts, stream=self._stream)
        self._next_rank = keyframe.rank
        self._frames = self._decoded(keyframe)

    def _decoded(self, start: Keyframe | None) -> Iterator[VideoFrame]:
        """Frames from ``start`` on; those shown before it, which it cannot give, are left out."""
        packets = read_packets(self._container, self._stream)
        if start:
            packets = self._from_keyframe(packets, start)
        for packet in packets:
            self._timeline.label_packet(packet, self._next_rank)
            self._next_rank += 1
            for frame in packet.decode():
                if not start or (frame.pts is not None and frame.pts >= start.pts):
                    yield frame
        yield from self._stream.codec_context.decode(None)

    def _from_keyframe(
        self, packets: Iterator[VideoPacket], start: Keyframe
    ) -> Iterator[VideoPacket]:
        for packet in packets:
            if packet.pts == start.pts and packet.is_keyframe:
                yield packet
                yield from packets
                return
        raise _LostFrameError(f"seeking to pts {start.pts} leads past it")
