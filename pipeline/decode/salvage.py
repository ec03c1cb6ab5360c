"""What is still good in a damaged video: every frame that no bad packet can have touched."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.decode.container import VideoPacket, open_video, read_packets, use_decoder
from pipeline.decode.formats import format_of
from pipeline.decode.picture import Image, PictureMaker
from pipeline.decode.timeline import Timeline, scan_timeline
from schemas.errors import DecodeError

_MIN_GOOD_FRAMES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Salvage:
    """The good frames of a video that was decoded from end to end.

    ``labels`` ``(n,)`` int64 identify them while decoding: those of the timeline, or their count
    when it is counted. ``frame_indices`` ``(n,)`` int64 are their true display indices among
    ``num_frames``. ``bad_ranks`` are the bad packets by their place in decode order.
    """

    timeline: Timeline
    labels: npt.NDArray[np.int64]
    frame_indices: npt.NDArray[np.int64]
    num_frames: int
    bad_ranks: frozenset[int]

    @property
    def num_bad_packets(self) -> int:
        return self.timeline.num_lost_packets + len(self.bad_ranks)


def find_good_frames(path: str, timeline: Timeline, *, max_frame_pixels: int) -> Salvage:
    """Decode everything once and tell the good frames from the doubtful ones.

    A bad packet spoils all frames decoded after it up to the next good keyframe, and those that
    are shown before that keyframe but decoded after it. Without pts it spoils the whole rest,
    for the count is lost. In a transport stream, damage that only the decoder noticed makes the
    gaps beside it losses too: the stream is looked at once more.

    Raises:
        DecodeError: "corrupt_frames" or "truncated", fewer than 2 good frames are left.
    """
    decoded, bad_ranks = _decode_all(path, timeline, max_frame_pixels)
    is_news = not bad_ranks <= timeline.corrupt_ranks
    if is_news and format_of(timeline.demuxer).counts_packets:
        timeline = scan_timeline(
            path, timeline.demuxer, max_frame_pixels=max_frame_pixels, bad_ranks=bad_ranks
        )
        decoded, bad_ranks = _decode_all(path, timeline, max_frame_pixels)
    labels = np.unique(decoded)
    num_bad = timeline.num_lost_packets + len(bad_ranks)
    num_frames = timeline.probe.num_frames
    if not num_bad:
        if np.any(np.diff(decoded) <= 0):
            raise DecodeError(
                "corrupt_frames",
                f"{path}: frames come out of the decoder in another order than their times say, "
                "so packets are missing without a trace: copy the video again",
            )
        # Nothing is wrong but the number of packets: some show nothing, some show more.
        frame_indices = np.arange(labels.size, dtype=np.int64)
        return Salvage(timeline, labels, frame_indices, labels.size, bad_ranks)
    if timeline.is_counted:
        frame_indices = labels = labels[labels < timeline.num_placed]
    else:
        labels = labels[np.isin(labels, timeline.shown_labels[: timeline.num_placed])]
        labels = labels[~np.isin(labels, _spoiled_labels(timeline, bad_ranks))]
        frame_indices = np.searchsorted(timeline.shown_labels, labels).astype(np.int64)
    if labels.size < _MIN_GOOD_FRAMES:
        kind = "corrupt_frames" if bad_ranks else "truncated"
        raise DecodeError(
            kind,
            f"{path}: only {labels.size} of {num_frames} frames are good ({num_bad} packets are "
            f"bad or missing), at least {_MIN_GOOD_FRAMES} are needed: copy the video again",
        )
    return Salvage(timeline, labels, frame_indices, num_frames, bad_ranks)


def _decode_all(
    path: str, timeline: Timeline, max_frame_pixels: int
) -> tuple[npt.NDArray[np.int64], frozenset[int]]:
    """The labels of all frames as they come out, and the ranks of all bad packets."""
    decoder = _TolerantDecoder(path, timeline, max_frame_pixels)
    labels = np.array([label for label, _ in decoder], dtype=np.int64)
    return labels, timeline.corrupt_ranks | decoder.bad_ranks


def salvage_frames(
    path: str,
    timeline: Timeline,
    labels: npt.NDArray[np.int64],
    pictures: PictureMaker,
    *,
    max_frame_pixels: int,
) -> Iterator[Image]:
    """Yield the frames with these labels (ascending, none twice), by decoding everything again.

    After damage a decoder may give a frame sooner than one that is shown before it.
    """
    wanted, missing = deque(labels.tolist()), set(labels.tolist())
    early: dict[int, Image] = {}
    for found, frame in _TolerantDecoder(path, timeline, max_frame_pixels):
        if found in missing:
            missing.remove(found)
            early[found] = pictures(frame)
        while wanted and wanted[0] in early:
            yield early.pop(wanted.popleft())
        if not wanted:
            return
    raise DecodeError("corrupt_frames", f"{path}: frame {wanted[0]} came out only once in two runs")


def _spoiled_labels(timeline: Timeline, bad_ranks: frozenset[int]) -> npt.NDArray[np.int64]:
    spoiled = np.zeros(timeline.labels.size, dtype=bool)
    good_keys = [key for key in timeline.keyframes if key.rank not in bad_ranks]
    for rank in sorted(bad_ranks):
        if spoiled[rank]:
            continue
        key = next((key for key in good_keys if key.rank > rank), None)
        if key is None:
            spoiled[rank:] = True
            break
        spoiled[rank : key.rank] = True
        spoiled[rank:] |= timeline.labels[rank:] < key.pts
    if bad_ranks and not format_of(timeline.demuxer).times_all_frames:
        first = min(bad_ranks)
        spoiled[first:] = True
        spoiled |= timeline.labels > timeline.labels[first]
    return timeline.labels[spoiled]


class _TolerantDecoder:
    """All frames with their labels, packet by packet; bad packets are noted and passed over.

    After damage the decoder starts afresh at the next keyframe, as after a jump, so that nothing
    of the damage is left in it. One thread: an error belongs to the packet just given.
    """

    def __init__(self, path: str, timeline: Timeline, max_frame_pixels: int) -> None:
        self._path = path
        self._timeline = timeline
        self._max_frame_pixels = max_frame_pixels
        self._ranks = {int(pts): rank for rank, pts in enumerate(timeline.labels)}
        self._num_shown = 0
        self.bad_ranks: set[int] = set()

    def __iter__(self) -> Iterator[tuple[int, VideoFrame]]:
        self.bad_ranks.clear()
        self._num_shown = 0
        timeline = self._timeline
        with open_video(self._path, timeline.demuxer, stream_index=timeline.probe.stream_index) as (
            container,
            stream,
        ):
            use_decoder(stream, threads=1, max_frame_pixels=self._max_frame_pixels)
            for frame in self._frames(read_packets(container, stream), stream):
                label = self._label(frame)
                if label is not None:
                    yield label, frame

    def _frames(self, packets: Iterator[VideoPacket], stream: VideoStream) -> Iterator[VideoFrame]:
        is_damaged, first_pts = False, -math.inf
        for rank, packet in enumerate(packets):
            self._timeline.label_packet(packet, rank)
            if is_damaged and packet.is_keyframe:
                yield from _decoded(stream, None)[0]
                stream.codec_context.flush_buffers()
                is_damaged = False
                first_pts = -math.inf if packet.pts is None else packet.pts
            frames, is_good = _decoded(stream, packet)
            yield from frames
            is_leading = packet.pts is not None and packet.pts < first_pts
            if not is_good and not is_leading:
                self.bad_ranks.add(rank)
                is_damaged = True
        yield from _decoded(stream, None)[0]

    def _label(self, frame: VideoFrame) -> int | None:
        if self._timeline.is_counted:
            self._num_shown += 1
            return None if self.bad_ranks else self._num_shown - 1
        if frame.pts is None:
            return None
        if frame.is_corrupt:
            self.bad_ranks.add(self._ranks.get(frame.pts, 0))
            return None
        return int(frame.pts)


def _decoded(stream: VideoStream, packet: "VideoPacket | None") -> tuple[list[VideoFrame], bool]:
    try:
        return list(stream.codec_context.decode(packet)), True
    except av.error.FFmpegError:
        return [], False
