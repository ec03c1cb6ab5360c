"""Frames that a container lost: how many, and which of those left still have their place."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.decode.clock import Clock, Ticks, usual_interval
from pipeline.decode.formats import format_of
from pipeline.decode.packets import PacketTable
from pipeline.decode.picture_order import directly_follows

_MAX_LOST_SECONDS = 10.0
"""A damaged recording that begins later still was begun late."""

_WIDE = 1.5
"""An interval so many times the usual one has room for another frame."""

_USUAL_B_FRAMES = 3
"""So many frames are decoded at most, as a rule, after a frame that is shown later."""

_NEIGHBOURS = 7
"""So many intervals to each side say what is usual."""

_REORDERED = 4
"""A loss is marked on a packet that is decoded so few packets before or after, at most."""

_EVEN_SHARE = 0.9
"""So many intervals of a recording at an even rate are alike, at least, whatever it lost."""

_HEAD_BYTES = 4096
_EBML_ID = b"\x1a\x45\xdf\xa3"
_SEGMENT_ID = b"\x18\x53\x80\x67"


@dataclass(frozen=True, slots=True, eq=False)
class Holes:
    """``num_lost`` packets are surely missing; the first ``num_placed`` frames have their place.

    ``clock`` is the one given, with the times of lost frames filled in where they are known.
    """

    num_lost: int
    num_placed: int
    clock: Clock


def find_holes(
    container: InputContainer,
    stream: VideoStream,
    table: PacketTable,
    clock: Clock,
    *,
    demuxer: str,
    is_suspect: bool,
) -> Holes:
    """What is missing among the packets of ``table``.

    Formats with an index lose packets at the end only; others close up over a hole, which shows
    as a gap between the times. A gap alone is no hole (the frame rate may vary), but one beside
    complaints is. A file cut short may lack frames that are shown before its last ones and are
    decoded after them. Where frames otherwise come at an even rate, a hole says how many it took.

    Args:
        container: as opened.
        stream: whose packets.
        table: all packets.
        clock: their times.
        demuxer: the container's format.
        is_suspect: whether the demuxer complained of damage.
    """
    num_shown = clock.shown.size
    missing = _num_missing(container, stream, table, clock, demuxer)
    if missing:
        may_be_midway = demuxer == "avi" and _num_unfound(stream, table)
        return Holes(missing, 0 if may_be_midway else clock.num_before_end, clock)
    if format_of(demuxer).is_indexed or not clock.is_ordered or num_shown < 3:
        return Holes(0, num_shown, clock)
    if is_suspect and format_of(demuxer).begins_at_zero and _starts_late(stream, table, clock):
        return Holes(1, 0, clock)
    if is_suspect and format_of(demuxer).counts_packets:
        clock = dataclasses.replace(clock, shown=_uncrowded(clock.shown))
    gaps = _holes(container, stream, table, clock, demuxer=demuxer, is_suspect=is_suspect)
    if not gaps:
        return Holes(0, clock.shown.size, clock)
    filled = _filled(clock.shown, gaps) if format_of(demuxer).counts_packets else None
    if filled is None:
        return Holes(1, gaps[0] + 1, clock)
    num_lost = filled.size - clock.shown.size
    return Holes(num_lost, filled.size, dataclasses.replace(clock, shown=filled))


def _num_missing(
    container: InputContainer, stream: VideoStream, table: PacketTable, clock: Clock, demuxer: str
) -> int:
    """Frames that the container promises beyond the packets that are there.

    An index is believed. A count or a duration in a header often says too much, and is believed
    only when the file is also shorter than the container says.
    """
    if demuxer == "mov":
        return _num_unfound(stream, table)
    if demuxer == "avi":
        num_chunks = (table.dts[-1] or 0) + 1
        is_cut = _is_cut_short(container.name, demuxer)
        return max(_num_unfound(stream, table), stream.frames - num_chunks if is_cut else 0)
    if demuxer == "matroska" and _is_cut_short(container.name, demuxer):
        unit = float(stream.time_base or 0)
        end = unit * (int(clock.shown[-1]) + clock.last_duration)
        declared = _declared_seconds(container, stream)
        missing = (declared - end) * float(stream.average_rate or 1) if declared else 1.0
        # Durations are rounded, and the cut may go through what comes after the last frame.
        return round(missing) if missing >= 2 or not declared else 0
    return 0


def _num_unfound(stream: VideoStream, table: PacketTable) -> int:
    """Packets that stand in the index but not in the file."""
    return max(0, sum(entry.size > 0 for entry in stream.index_entries) - len(table))


def _holes(
    container: InputContainer,
    stream: VideoStream,
    table: PacketTable,
    clock: Clock,
    *,
    demuxer: str,
    is_suspect: bool,
) -> list[int]:
    """After which shown frames others are missing."""
    gaps = _gaps(clock.shown)
    container_format = format_of(demuxer)
    if is_suspect and container_format.counts_packets:
        return [gap for gap in gaps if _is_near_damage(table, clock, gap)]
    if is_suspect or not container_format.has_pauses:
        return gaps
    if not gaps or not clock.is_reordered or _is_whole(container.name, demuxer):
        return []
    last = gaps[-1]
    if last + 1 < clock.num_before_end:
        return []
    is_pause = directly_follows(stream, table, clock, last)
    if is_pause is None:
        longest = (_USUAL_B_FRAMES + _WIDE) * usual_interval(clock.shown)
        is_pause = len(gaps) > 1 or bool(np.diff(clock.shown)[last] > longest)
    return [] if is_pause else [last]


def _gaps(shown: Ticks) -> list[int]:
    """Where the time to the next frame is longer than round about."""
    intervals = np.diff(shown)
    padded = np.pad(intervals, _NEIGHBOURS, mode="reflect")
    around = np.median(sliding_window_view(padded, 2 * _NEIGHBOURS + 1), axis=1)
    return list(map(int, np.flatnonzero(intervals > _WIDE * around)))


def _is_near_damage(table: PacketTable, clock: Clock, gap: int) -> bool:
    """Whether a packet next to the gap is marked as damaged, as after most losses."""
    if not table.corrupt_ranks:
        return True
    ranks = np.flatnonzero(np.isin(clock.labels, clock.shown[gap : gap + 2]))
    near = range(int(ranks.min()) - _REORDERED, int(ranks.max()) + _REORDERED + 1)
    return not table.corrupt_ranks.isdisjoint(near)


def _starts_late(stream: VideoStream, table: PacketTable, clock: Clock) -> bool:
    """Whether the first packet comes after others of a recording that began at zero."""
    usual, unit = usual_interval(clock.shown), float(stream.time_base or 0)
    delay = stream.codec_context.reorder_depth * usual
    begin = int(clock.labels[0]) - delay if table.dts[0] is None else table.dts[0]
    return _WIDE * usual < begin < _MAX_LOST_SECONDS / unit


def _uncrowded(shown: Ticks) -> Ticks:
    """The times without those that follow another too closely: pieces of one frame."""
    intervals = np.diff(shown, prepend=2 * shown[0] - shown[1])
    return shown[2 * intervals > usual_interval(shown)]


def _filled(shown: Ticks, gaps: list[int]) -> Ticks | None:
    """The times with those of the frames lost in ``gaps``; None at an uneven rate."""
    intervals, usual = np.diff(shown), usual_interval(shown)
    is_usual = np.abs(intervals - usual) <= 0.1 * usual + 1
    if np.mean(is_usual) < _EVEN_SHARE:
        return None
    step = float(intervals[is_usual].mean())
    lost = [
        int(shown[gap]) + round(number * step)
        for gap in gaps
        for number in range(1, round(intervals[gap] / step))
    ]
    if len(lost) > shown.size:
        return None
    return np.sort(np.concatenate([shown, np.array(lost, dtype=np.int64)]))


def _declared_seconds(container: InputContainer, stream: VideoStream) -> float:
    """Where the stream ends as a Matroska file says; 0 when it does not."""
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        # The container's own duration covers the longest stream, which need not be this one.
        alone = len(container.streams) == 1
        return container.duration / av.time_base if alone and container.duration else 0.0


def _is_cut_short(path: str, demuxer: str) -> bool:
    """Whether the file ends before its outermost element does."""
    return _declared_end(path, demuxer) > Path(path).stat().st_size


def _is_whole(path: str, demuxer: str) -> bool:
    """Whether the outermost element says where it ends, and the file holds it."""
    return 0 < _declared_end(path, demuxer) <= Path(path).stat().st_size


def _declared_end(path: str, demuxer: str) -> int:
    """Where the outermost element of the file ends, in bytes; 0 when the file does not say."""
    with Path(path).open("rb") as file:
        if demuxer == "avi":
            return _riff_end(file)
        return _segment_end(file.read(_HEAD_BYTES)) if demuxer == "matroska" else 0


def _riff_end(file: BinaryIO) -> int:
    """Where the last of the RIFF chunks of a large AVI ends."""
    end = 0
    while (header := file.read(8))[:4] == b"RIFF":
        length = int.from_bytes(header[4:], "little")
        if not length:
            return 0
        end += 8 + length + length % 2
        file.seek(end)
    return end


def _segment_end(head: bytes) -> int:
    """Where the Matroska segment ends; 0 when the file does not say."""
    begin, length = _ebml_content(head, len(_EBML_ID))
    at = begin + (length or 0)
    if head[at : at + len(_SEGMENT_ID)] != _SEGMENT_ID:
        return 0
    begin, length = _ebml_content(head, at + len(_SEGMENT_ID))
    return begin + length if length is not None else 0


def _ebml_content(head: bytes, at: int) -> tuple[int, int | None]:
    """Where the element begins whose size stands at ``at``, and its length, None if unknown."""
    first = head[at] if at < len(head) else 0
    num_bytes = 9 - first.bit_length()
    unknown = (1 << 7 * num_bytes) - 1
    length = int.from_bytes(head[at : at + num_bytes], "big") & unknown
    return at + num_bytes, None if length == unknown else length
