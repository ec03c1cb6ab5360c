"""The packets of a stream as a table, in decode order, and the packets that are not in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.stream import VideoStream

from pipeline.decode.bitstream import HOLE, PacketInspector
from pipeline.decode.container import read_packets

_INDEXED_DEMUXERS = ("mov", "gif")
"""Formats in which damage cannot hide a packet between others."""

_SHY_DEMUXERS = ("mpegts", "flv")
"""Their demuxers call lost packets a mere warning."""


@dataclass(frozen=True, slots=True)
class Keyframe:
    """A packet that decoding can start from; ``rank`` is its place in decode order."""

    rank: int
    pts: int


@dataclass(slots=True)
class PacketTable:
    """Columns with one entry per packet in decode order; ranks are places in that order.

    ``num_lost`` packets made the demuxer stumble; ``num_unfound`` are in its index but not there.
    """

    pts: list[int | None] = field(default_factory=list)
    is_discarded: list[bool] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    key_ranks: list[int] = field(default_factory=list)
    size_headers: set[bytes] = field(default_factory=set)
    corrupt_ranks: set[int] = field(default_factory=set)
    num_lost: int = 0
    num_unfound: int = 0
    end_pts: int = 0

    @property
    def have_distinct_pts(self) -> bool:
        return None not in self.pts and len(set(self.pts)) == len(self.pts)

    @property
    def has_open_gop(self) -> bool:
        """Whether some keyframe is decoded at another rank than it is displayed at."""
        if not self.have_distinct_pts:
            return True
        order = np.argsort(np.argsort(np.array(self.pts, dtype=np.int64)))
        return any(order[rank] != rank for rank in self.key_ranks)

    def shown_pts(self) -> npt.NDArray[np.int64]:
        """``(num_frames,)`` ascending; mere ranks when some packet has none."""
        shown = [
            pts for pts, dropped in zip(self.pts, self.is_discarded, strict=True) if not dropped
        ]
        known = [pts for pts in shown if pts is not None]
        return np.array(
            sorted(known) if len(known) == len(shown) else range(len(shown)), dtype=np.int64
        )

    def keyframes(self) -> tuple[Keyframe, ...]:
        return tuple(
            Keyframe(rank, pts) for rank in self.key_ranks if (pts := self.pts[rank]) is not None
        )


@contextmanager
def demuxer_complaints(demuxer: str) -> Iterator[Callable[[], list[str]]]:
    """What the demuxer logs in the block: it passes over damage without an error."""
    av.logging.set_level(av.logging.WARNING)
    limit = av.logging.WARNING if demuxer in _SHY_DEMUXERS else av.logging.ERROR
    try:
        with av.logging.Capture() as logs:
            yield lambda: [
                message
                for level, source, message in logs
                if level <= limit and source.startswith(demuxer)
            ]
    finally:
        av.logging.set_level(None)


def scan_packets(container: InputContainer, stream: VideoStream) -> PacketTable:
    """Read all packets of ``stream``, from the present position on."""
    table, errors = PacketTable(), list[str]()
    inspector = PacketInspector(
        stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    )
    ends_in_hole = False
    for packet in read_packets(container, stream, errors):
        rank, data = len(table.pts), bytes(packet)
        if packet.is_keyframe:
            table.key_ranks.append(rank)
            table.size_headers.add(inspector.size_header(data))
        if packet.is_corrupt or inspector.is_damaged(data):
            table.corrupt_ranks.update({rank - 1, rank} if ends_in_hole else {rank})
        ends_in_hole = data.endswith(HOLE)
        table.pts.append(packet.pts)
        table.dts.append(packet.dts)
        table.is_discarded.append(packet.is_discard)
        table.end_pts = max(table.end_pts, (packet.pts or 0) + (packet.duration or 0))
    table.num_lost += len(errors)
    return table


def num_placed(table: PacketTable, demuxer: str, *, num_missing: int, is_suspect: bool) -> int:
    """How many shown frames surely come before any frame that the container lost.

    Formats with an index lose packets at the end only; others close up over a hole, which shows
    as a gap between the pts. A gap alone is no hole (the frame rate may vary), but one beside
    complaints is, and so is one among the last frames when there is no other: what is missing
    there is decoded last and shown between them.
    """
    shown = table.shown_pts()
    last_dts = table.dts[-1]
    num_before_end = 0 if last_dts is None else int(np.searchsorted(shown, last_dts, side="right"))
    if demuxer == "avi":
        return 0 if table.num_unfound else shown.size
    if num_missing:
        return num_before_end
    if demuxer in _INDEXED_DEMUXERS or shown.size < 3:
        return shown.size
    intervals = np.diff(shown)
    usual = float(np.quantile(intervals, 0.25))
    wide = np.flatnonzero(intervals > 1.5 * usual)
    if is_suspect and shown[0] > 1.5 * usual:
        return 0
    if wide.size and (is_suspect or wide[0] + 1 >= num_before_end > 0):
        return int(wide[0]) + 1
    return shown.size


def num_missing(
    container: InputContainer, stream: VideoStream, table: PacketTable, fps: float
) -> int:
    """Frames the container promises beyond the packets that are there."""
    found = len(table.pts)
    name = container.format.name
    if name.startswith("mov"):
        return max(0, len(stream.index_entries) - found)
    if name == "avi":
        table.num_unfound = max(0, sum(e.size > 0 for e in stream.index_entries) - found)
    if name.startswith("matroska"):
        declared_seconds = _declared_seconds(container, stream)
        missing = (declared_seconds - table.end_pts * float(stream.time_base or 0)) * fps
        # Durations are rounded, and the last frame may be shown longer than the others.
        return round(missing) if missing >= 2 else 0
    return max(0, stream.frames - found)


def _declared_seconds(container: InputContainer, stream: VideoStream) -> float:
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        # The container's own duration covers the longest stream, which need not be this one.
        alone = len(container.streams) == 1
        return container.duration / av.time_base if alone and container.duration else 0.0
