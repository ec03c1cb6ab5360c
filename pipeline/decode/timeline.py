"""What the packets of a video say about its frames: order, times, keyframes, damage."""

from collections.abc import Collection
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.decode.clock import Clock, duration_seconds, frame_rate, read_clock
from pipeline.decode.container import (
    VideoPacket,
    open_video,
    read_packets,
    use_decoder,
    video_streams,
)
from pipeline.decode.decord_guard import PacketFacts, decord_objection
from pipeline.decode.encryption import encrypted, file_is_encrypted, stream_is_encrypted
from pipeline.decode.formats import format_of
from pipeline.decode.holes import Holes, find_holes
from pipeline.decode.packets import PacketTable, demuxer_complaints, scan_packets
from pipeline.decode.picture import Orientation
from schemas.errors import DecodeError
from schemas.video import VideoProbe


@dataclass(frozen=True, slots=True)
class Keyframe:
    """A packet that decoding can start from; ``rank`` is its place in decode order."""

    rank: int
    pts: int


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """The frames of one video stream, read off its packets.

    ``orientation`` is that of the first frame. ``labels`` ``(num_packets,)`` int64 tell packets
    apart, in decode order; a frame bears that of its packet. ``shown_labels`` ``(num_frames,)``
    int64 are those of the frames in display order, ascending. When ``is_counted`` the display
    order is known only after decoding: frame i is then the i-th one decoded. ``can_seek`` says
    whether the labels are the file's own pts.
    ``num_lost_packets`` the demuxer stumbled over or never found; ``corrupt_ranks`` are those
    it marked as damaged, by their place in decode order.
    ``num_placed`` is how many shown frames surely have their place: all, unless the container
    lost packets midway, and nobody knows how many.
    """

    probe: VideoProbe
    orientation: Orientation
    demuxer: str
    labels: npt.NDArray[np.int64]
    shown_labels: npt.NDArray[np.int64]
    keyframes: tuple[Keyframe, ...]
    is_counted: bool
    can_seek: bool
    num_lost_packets: int
    corrupt_ranks: frozenset[int]
    num_placed: int

    @property
    def num_bad_packets(self) -> int:
        return self.num_lost_packets + len(self.corrupt_ranks)

    def label_packet(self, packet: VideoPacket, rank: int) -> None:
        """Write the label on a packet about to be decoded, so that its frame bears it."""
        if not self.is_counted and rank < self.labels.size:
            packet.pts = int(self.labels[rank])

    def keyframe_before(self, index: int) -> Keyframe | None:
        """The latest keyframe shown no later than frame ``index``; None when there is none."""
        limit = self.shown_labels[index]
        return max(
            (key for key in self.keyframes if key.pts <= limit),
            key=lambda key: key.pts,
            default=None,
        )


def scan_timeline(
    path: str, demuxer: str, *, max_frame_pixels: int, bad_ranks: Collection[int] = ()
) -> Timeline:
    """Read all packets of a video; at most one frame is decoded, to learn its size and rotation.

    Args:
        path: the video.
        demuxer: FFmpeg's name of the container's format.
        max_frame_pixels: limit on width x height.
        bad_ranks: packets that are known to be damaged, by their place in decode order.

    Raises:
        DecodeError: "unreadable", "no_video", "unsupported_codec", "encrypted", "truncated" (no
            packets) or "too_large", which is found before anything is decoded.
    """
    limit = max_frame_pixels
    timeline = _scan_stream(path, demuxer, None, limit, bad_ranks)
    if timeline is None:
        with open_video(path, demuxer) as (container, _):
            others = [stream.index for stream in video_streams(container)]
        scans = (_scan_stream(path, demuxer, index, limit, bad_ranks) for index in others)
        timeline = next(filter(None, scans), None)
    if timeline is None:
        raise DecodeError(
            "truncated", f"{path} has a video stream but shows no frame: copy it again"
        )
    return timeline


def _scan_stream(
    path: str,
    demuxer: str,
    stream_index: int | None,
    max_frame_pixels: int,
    bad_ranks: Collection[int],
) -> Timeline | None:
    """The timeline of one stream; None when it has no frames."""
    with (
        demuxer_complaints(demuxer) as complaints,
        open_video(path, demuxer, stream_index=stream_index) as (container, stream),
    ):
        if stream_is_encrypted(path, demuxer, stream):
            raise encrypted(path)
        _check_size(path, stream.width, stream.height, max_frame_pixels)
        table = scan_packets(container, stream)
        if table.is_encrypted:
            raise encrypted(path)
        if not table.num_shown:
            return None
        table.corrupt_ranks.update(bad_ranks)
        is_suspect = bool(complaints() or bad_ranks)
        if format_of(demuxer).may_begin_anywhere:
            if is_suspect:
                table.drop_strays()
            else:
                table.drop_head()
        clock = read_clock(table, stream, demuxer, is_suspect=is_suspect)
        holes = find_holes(container, stream, table, clock, demuxer=demuxer, is_suspect=is_suspect)
        clock = holes.clock
        table.num_lost += holes.num_lost
        first = _first_frame(path, demuxer, stream.index, max_frame_pixels)
        if first is None and file_is_encrypted(path, demuxer):
            raise encrypted(path)
        orientation = Orientation.of(first) if first else Orientation()
        size = (first.width, first.height) if first else (stream.width, stream.height)
        probe = _probe(
            container, stream, table, holes, orientation, orientation.size(*size), demuxer
        )
    return Timeline(
        probe=probe,
        orientation=orientation,
        demuxer=demuxer,
        labels=clock.labels,
        shown_labels=clock.shown_labels,
        keyframes=tuple(Keyframe(rank, int(clock.labels[rank])) for rank in table.key_ranks),
        is_counted=not clock.is_ordered,
        can_seek=clock.is_ordered and not clock.num_joins,
        num_lost_packets=table.num_lost,
        corrupt_ranks=frozenset(table.corrupt_ranks),
        num_placed=holes.num_placed,
    )


def _probe(
    container: InputContainer,
    stream: VideoStream,
    table: PacketTable,
    holes: Holes,
    orientation: Orientation,
    size: tuple[int, int],
    demuxer: str,
) -> VideoProbe:
    clock = holes.clock
    fps = frame_rate(clock, stream, holes.num_placed)
    facts = PacketFacts(
        demuxer=demuxer,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=stream.codec_context.pix_fmt or "",
        width=stream.width,
        height=stream.height,
        first_pts=int(clock.shown[0]),
        num_streams=len(container.streams.video),
        num_discarded=sum(table.is_discarded),
        num_bad=table.num_lost + len(table.corrupt_ranks),
        is_ordered=clock.is_ordered,
        is_turned=orientation != Orientation(),
        has_open_gop=clock.is_ordered and _has_open_gop(table, clock),
        has_size_changes=len(table.size_headers) > 1,
    )
    return VideoProbe(
        container=demuxer,
        stream_index=stream.index,
        codec=facts.codec,
        pixel_format=facts.pixel_format,
        width=size[0],
        height=size[1],
        rotation=orientation.rotation,
        is_mirrored=orientation.is_mirrored,
        fps=fps,
        duration_seconds=duration_seconds(clock, stream, fps),
        num_frames=clock.shown.size,
        num_declared_frames=max(stream.frames, 0),
        decord_objection=decord_objection(facts),
    )


def _has_open_gop(table: PacketTable, clock: Clock) -> bool:
    """Whether some keyframe is decoded at another rank than it is displayed at."""
    order = np.argsort(np.argsort(clock.labels))
    return any(order[rank] != rank for rank in table.key_ranks)


def _check_size(path: str, width: int, height: int, max_frame_pixels: int) -> None:
    if width * height > max_frame_pixels:
        raise DecodeError(
            "too_large",
            f"{path} has frames of {width}x{height} pixels, more than the {max_frame_pixels} that "
            "decode.max_frame_pixels allows; raise it, or scale the video down",
        )


def _first_frame(
    path: str, demuxer: str, stream_index: int, max_frame_pixels: int
) -> VideoFrame | None:
    """The first frame that can be decoded, if any."""
    with open_video(path, demuxer, stream_index=stream_index) as (container, stream):
        use_decoder(stream, threads=1, max_frame_pixels=max_frame_pixels)
        for packet in read_packets(container, stream):
            try:
                for frame in packet.decode():
                    return frame
            except av.error.FFmpegError:
                continue
        try:
            return next(iter(stream.codec_context.decode(None)), None)
        except av.error.FFmpegError:
            return None
