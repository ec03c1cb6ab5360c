"""When the packets of a stream are shown, and in which order."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from pipeline.decode.formats import format_of
from pipeline.decode.packets import PacketTable

_FALLBACK_FPS = 24.0
"""What transformers assumes of a video that does not say."""

_MAX_FPS = 1000.0

_MAX_PAUSE_SECONDS = 10.0
"""A longer pause in a damaged transport stream, before a keyframe, is another recording's start."""

_PARSED_CODECS = ("h264", "mpeg1video", "mpeg2video", "mpeg4")
"""Codecs whose packets are looked into for B-frames."""

Ticks = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Clock:
    """The times of all packets, in units of the stream's time base.

    ``labels`` ``(num_packets,)`` int64 tell packets apart, in decode order: their pts when
    ``is_ordered``, running on where recordings were joined, else their ranks. When ``is_ordered``
    frames are shown in the order of their labels; otherwise the order is known only after
    decoding. ``shown`` ``(num_frames,)`` int64 are the times of the shown frames, ascending; mere
    numbers when ``has_times`` is False. ``num_joins`` counts the new starts of the clock.
    ``last_duration`` is how long the last frame is shown, at least as long as most others.
    The first ``num_before_end`` frames are surely shown before any that would have been decoded
    after the last packet.
    """

    labels: Ticks
    shown: Ticks
    is_ordered: bool
    has_times: bool
    num_joins: int
    last_duration: int
    num_before_end: int

    @property
    def is_reordered(self) -> bool:
        """Whether some frame is surely shown in another place than it is decoded in."""
        return bool(np.any(np.diff(self.labels) < 0))

    @property
    def shown_labels(self) -> Ticks:
        """``(num_frames,)`` int64: the labels of the frames in display order, or their numbers."""
        return self.shown if self.is_ordered else np.arange(self.shown.size, dtype=np.int64)


def read_clock(table: PacketTable, stream: VideoStream, demuxer: str, *, is_suspect: bool) -> Clock:
    """The times that the packets of ``table`` give.

    Args:
        table: at least one packet that is shown.
        stream: whose packets.
        demuxer: the container's format.
        is_suspect: whether the demuxer complained of damage.
    """
    container_format = format_of(demuxer)
    has_own_pts = container_format.has_pts
    stamps = _stamps(*((table.pts, table.dts) if has_own_pts else (table.dts,)))
    starts = []
    times = np.arange(len(table), dtype=np.int64)
    if stamps is not None:
        longest = round(_MAX_PAUSE_SECONDS / float(stream.time_base or 1)) if is_suspect else None
        starts = _starts(table, stamps, longest) if container_format.may_be_joined else []
        times = stamps + _offsets(stamps, starts)
    is_ordered = (
        has_own_pts
        and None not in table.pts
        and np.unique(times).size == times.size
        and not (_is_decode_order(table, times, stream) and not is_suspect)
    )
    is_shown = ~np.array(table.is_discarded, dtype=bool)
    shown = np.sort(times[is_shown])
    last = int(np.argmax(np.where(is_shown, times, times.min())))
    moved = 0 if stamps is None else int(times[-1] - stamps[-1])
    return Clock(
        labels=times if is_ordered else np.arange(len(table), dtype=np.int64),
        shown=shown,
        is_ordered=is_ordered,
        has_times=stamps is not None,
        num_joins=len(starts),
        last_duration=max(table.durations[last], usual_interval(shown)),
        num_before_end=_num_before_end(shown, table.dts[-1], moved)
        if is_ordered
        else max(0, shown.size - stream.codec_context.reorder_depth),
    )


def frame_rate(clock: Clock, stream: VideoStream, num_intact: int) -> float:
    """Frames per second: as declared when the times agree within 1 %, else as the times say.

    Args:
        clock: the times.
        stream: declares a rate, perhaps.
        num_intact: so many frames from the first on have none missing between them.
    """
    declared = next((float(r) for r in (stream.average_rate, stream.guessed_rate) if r), 0.0)
    if not 0 < declared <= _MAX_FPS:
        declared = 0.0
    shown = clock.shown[:num_intact] if num_intact > 1 else clock.shown
    span = float(stream.time_base or 0) * int(shown[-1] - shown[0])
    measured = (shown.size - 1) / span if clock.has_times and span > 0 else 0.0
    if not 0 < measured <= _MAX_FPS:
        return declared or _FALLBACK_FPS
    return declared if abs(declared - measured) <= 0.01 * measured else measured


def duration_seconds(clock: Clock, stream: VideoStream, fps: float) -> float:
    """From the first frame to the end of the last one."""
    if not clock.has_times:
        return clock.shown.size / fps
    unit = float(stream.time_base or 0)
    span = int(clock.shown[-1] - clock.shown[0]) + clock.last_duration
    return unit * span or 1 / fps


def usual_interval(shown: Ticks) -> int:
    """From one frame to the next where neither a pause nor a hole lies between them."""
    return int(np.quantile(np.diff(shown), 0.25)) if shown.size > 1 else 0


def _stamps(*columns: list[int | None]) -> Ticks | None:
    """The first column that says something of every packet, ``(num_packets,)``, if any."""
    for column in columns:
        if None not in column:
            return np.array(column, dtype=np.int64)
    return None


def _starts(table: PacketTable, stamps: Ticks, longest_pause: int | None) -> list[int]:
    """Ranks at which the clock starts anew; long pauses count where a limit is given."""
    steps = np.diff(stamps if None in table.dts else np.array(table.dts, dtype=np.int64))
    starts = steps < 0
    if longest_pause is not None:
        starts |= (steps > longest_pause) & np.isin(np.arange(1, len(table)), table.key_ranks)
    return (np.flatnonzero(starts) + 1).tolist()


def _offsets(stamps: Ticks, starts: list[int]) -> Ticks:
    """What to add to each stamp so that the clock runs on where it starts anew."""
    offsets = np.zeros_like(stamps)
    ends = [*starts[1:], stamps.size]
    for before, begin, end in zip([0, *starts], starts, ends, strict=False):
        previous = stamps[before:begin] + offsets[before:begin]
        following = previous.max() + usual_interval(np.sort(previous))
        offsets[begin:end] = following - stamps[begin:end].min()
    return offsets


def _num_before_end(shown: Ticks, last_dts: int | None, moved: int) -> int:
    """How many frames are shown before any that would be decoded after the last packet."""
    if last_dts is None:
        return 0
    return int(np.searchsorted(shown, last_dts + moved, side="right"))


def _is_decode_order(table: PacketTable, times: Ticks, stream: VideoStream) -> bool:
    """Whether the times follow the order of decoding although frames are shown in another.

    A B-frame is shown before a frame that was decoded earlier. One that seems to be shown after
    all of those got its time from somebody who did not know that; a few of them may only have
    lost that frame.
    """
    is_latest = times == np.maximum.accumulate(times)
    if stream.codec_context.codec.canonical_name in _PARSED_CODECS:
        first = table.key_ranks[0] if table.key_ranks else 0
        is_latest_b = is_latest[first:][np.array(table.is_bidirectional[first:], dtype=bool)]
        return bool(2 * np.count_nonzero(is_latest_b) > is_latest_b.size)
    return bool(stream.codec_context.reorder_depth and is_latest.all() and times.size > 1)
