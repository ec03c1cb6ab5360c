"""What the packets of a video say about its frames: order, times, keyframes, damage."""

from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from pipeline.decode.container import open_video, read_packets, upright_rotation, use_decoder
from pipeline.decode.decord_guard import PacketFacts, decord_objection
from pipeline.decode.packets import (
    Keyframe,
    PacketTable,
    demuxer_complaints,
    num_missing,
    num_placed,
    scan_packets,
)
from schemas.errors import DecodeError
from schemas.video import VideoProbe

_FALLBACK_FPS = 24.0
"""What transformers assumes of a video that does not say."""

_MAX_FPS = 1000.0

_COUNTED_DEMUXERS = ("avi",)
"""Formats without pts of their own: their frames are counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """The frames of one video stream, read off its packets.

    ``shown_pts`` are the ``(num_frames,)`` int64 pts of the shown frames in display order, in
    units of the stream's time base. ``packet_pts`` are those of all packets in decode order.
    When ``is_counted`` the pts cannot tell frames apart, and frame i is the i-th one decoded.
    ``num_lost_packets`` the demuxer stumbled over or never found; ``corrupt_ranks`` are those
    it marked as damaged, by their place in decode order.
    ``num_placed`` is how many shown frames surely have their place: all, unless the container
    lost packets midway, and nobody knows how many.
    """

    probe: VideoProbe
    demuxer: str
    shown_pts: npt.NDArray[np.int64]
    packet_pts: npt.NDArray[np.int64]
    keyframes: tuple[Keyframe, ...]
    is_counted: bool
    num_lost_packets: int
    corrupt_ranks: frozenset[int]
    num_placed: int

    @property
    def num_bad_packets(self) -> int:
        return self.num_lost_packets + len(self.corrupt_ranks)

    def keyframe_before(self, index: int) -> Keyframe | None:
        """The latest keyframe shown no later than frame ``index``; None when there is none."""
        limit = self.shown_pts[index]
        return max(
            (key for key in self.keyframes if key.pts <= limit),
            key=lambda key: key.pts,
            default=None,
        )


def scan_timeline(path: str, demuxer: str, *, max_frame_pixels: int) -> Timeline:
    """Read all packets of a video; at most one frame is decoded, to learn how it is rotated.

    Raises:
        DecodeError: "unreadable", "no_video", "unsupported_codec", "truncated" (no packets) or
            "too_large", which is found before anything is decoded.
    """
    with demuxer_complaints(demuxer) as complaints, open_video(path, demuxer) as opened:
        container, stream = opened
        _check_size(path, stream.width, stream.height, max_frame_pixels)
        packets = scan_packets(container, stream)
        shown = packets.shown_pts()
        if not shown.size:
            raise DecodeError(
                "truncated", f"{path} has a video stream but shows no frame: copy it again"
            )
        is_counted = demuxer in _COUNTED_DEMUXERS or not packets.have_distinct_pts
        fps = _frame_rate(stream, shown, is_counted=is_counted)
        missing = num_missing(container, stream, packets, fps)
        placed = num_placed(packets, demuxer, num_missing=missing, is_suspect=bool(complaints()))
        # A hole without a count is one packet at least.
        packets.num_lost += missing or int(placed < shown.size)
        facts = _packet_facts(demuxer, stream, packets, is_counted=is_counted)
        seconds = float(stream.time_base or 0) * int(shown[-1] - shown[0]) + 1 / fps
        num_declared = max(stream.frames, 0)
    rotation = _first_rotation(path, demuxer, max_frame_pixels)
    sides = (facts.width, facts.height)
    width, height = sides if rotation in (0, 180) else sides[::-1]
    probe = VideoProbe(
        container=demuxer,
        codec=facts.codec,
        pixel_format=facts.pixel_format,
        width=width,
        height=height,
        rotation=rotation,
        fps=fps,
        duration_seconds=shown.size / fps if is_counted else seconds,
        num_frames=shown.size,
        num_declared_frames=num_declared,
        decord_objection=decord_objection(facts),
    )
    return Timeline(
        probe=probe,
        demuxer=demuxer,
        shown_pts=shown,
        packet_pts=np.array([-1 if pts is None else pts for pts in packets.pts], dtype=np.int64),
        keyframes=packets.keyframes(),
        is_counted=is_counted,
        num_lost_packets=packets.num_lost,
        corrupt_ranks=frozenset(packets.corrupt_ranks),
        num_placed=placed,
    )


def _packet_facts(
    demuxer: str, stream: VideoStream, packets: PacketTable, *, is_counted: bool
) -> PacketFacts:
    return PacketFacts(
        demuxer=demuxer,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=stream.codec_context.pix_fmt or "",
        width=stream.width,
        height=stream.height,
        first_pts=int(packets.shown_pts()[0]),
        has_distinct_pts=not is_counted,
        num_discarded=sum(packets.is_discarded),
        num_bad=packets.num_lost + len(packets.corrupt_ranks),
        has_open_gop=packets.has_open_gop,
        has_size_changes=len(packets.size_headers) > 1,
    )


def _check_size(path: str, width: int, height: int, max_frame_pixels: int) -> None:
    if width * height > max_frame_pixels:
        raise DecodeError(
            "too_large",
            f"{path} has frames of {width}x{height} pixels, more than the {max_frame_pixels} that "
            "decode.max_frame_pixels allows; raise it, or scale the video down",
        )


def _frame_rate(stream: VideoStream, shown: npt.NDArray[np.int64], *, is_counted: bool) -> float:
    """Frames per second: as declared when the pts agree within 1 %, else as the pts say."""
    declared = next((float(r) for r in (stream.average_rate, stream.guessed_rate) if r), 0.0)
    if not 0 < declared <= _MAX_FPS:
        declared = 0.0
    span = float(stream.time_base or 0) * int(shown[-1] - shown[0])
    measured = (shown.size - 1) / span if span > 0 else 0.0
    if is_counted or not 0 < measured <= _MAX_FPS:
        return declared or _FALLBACK_FPS
    return declared if abs(declared - measured) <= 0.01 * measured else measured


def _first_rotation(path: str, demuxer: str, max_frame_pixels: int) -> int:
    with open_video(path, demuxer) as (container, stream):
        use_decoder(stream, threads=1, max_frame_pixels=max_frame_pixels)
        for packet in read_packets(container, stream):
            try:
                for frame in packet.decode():
                    return upright_rotation(frame)
            except av.error.FFmpegError:
                continue
        return next(map(upright_rotation, _drained(stream)), 0)


def _drained(stream: VideoStream) -> list[av.VideoFrame]:
    try:
        return list(stream.codec_context.decode(None))
    except av.error.FFmpegError:
        return []
