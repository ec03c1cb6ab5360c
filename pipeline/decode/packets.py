"""The packets of a stream as a table, in decode order, and what the demuxer says of them."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from pipeline.decode.bitstream import HOLE, PacketInspector
from pipeline.decode.container import VideoPacket, read_packets
from pipeline.decode.formats import format_of

_HARMLESS = ("DTS discontinuity",)
"""How FFmpeg calls a long pause."""

_MOST_STRAYS = 4
"""Where more than one packet in so many is a stray, that is how the stream was made."""

_NUM_LAST = 32
"""More packets than an encoder reorders (16 at most), so that the end can be looked at closely."""


@dataclass(slots=True)
class PacketTable:
    """Columns with one entry per packet in decode order; ranks are places in that order.

    ``pts``, ``dts`` and ``durations`` are in units of the stream's time base. ``is_bidirectional``
    says which packets are known to hold a B-frame. ``size_headers`` are all headers that may
    change the frame size. ``is_encrypted`` says whether some packet is. ``num_lost`` packets made
    the demuxer stumble. ``last`` holds the last few packets themselves.
    """

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    is_discarded: list[bool] = field(default_factory=list)
    is_bidirectional: list[bool] = field(default_factory=list)
    key_ranks: list[int] = field(default_factory=list)
    size_headers: set[bytes] = field(default_factory=set)
    corrupt_ranks: set[int] = field(default_factory=set)
    is_encrypted: bool = False
    num_lost: int = 0
    last: deque[VideoPacket] = field(default_factory=lambda: deque(maxlen=_NUM_LAST))

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def num_shown(self) -> int:
        """Packets that an edit list does not discard."""
        return len(self) - sum(self.is_discarded)

    def drop_strays(self) -> None:
        """Take pieces of frames for bad packets that show nothing.

        Damage leaves them without a time, or with that of the piece before.
        """
        strays = [
            rank
            for rank, pts in enumerate(self.pts)
            if pts is None or (rank and pts == self.pts[rank - 1])
        ]
        if _MOST_STRAYS * len(strays) > len(self):
            return
        for rank in strays:
            for column in (self.pts, self.dts):
                before = column[rank - 1] if rank else None
                column[rank] = None if before is None else before + 1
            self.is_discarded[rank] = True
            self.corrupt_ranks.update({max(0, rank - 1), rank})
        self.key_ranks = [rank for rank in self.key_ranks if rank not in strays]

    def drop_head(self) -> None:
        """Do not count on what comes before the first keyframe: it cannot be decoded."""
        for rank in range(self.key_ranks[0] if self.key_ranks else 0):
            self.is_discarded[rank] = True


@contextmanager
def demuxer_complaints(demuxer: str) -> Iterator[Callable[[], list[str]]]:
    """What the demuxer logs in the block: it passes over damage without an error."""
    # The same words about the next file count as well.
    av.logging.set_skip_repeated(False)
    av.logging.set_level(av.logging.WARNING)
    limit = av.logging.WARNING if format_of(demuxer).warns_of_losses else av.logging.ERROR
    try:
        with av.logging.Capture() as logs:
            yield lambda: [
                message
                for level, source, message in logs
                if level <= limit
                and source.startswith(demuxer)
                and not message.startswith(_HARMLESS)
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
        rank, data = len(table), bytes(packet)
        if packet.is_keyframe:
            table.key_ranks.append(rank)
            table.size_headers.add(inspector.size_header(data))
        if packet.is_corrupt or inspector.is_damaged(data):
            table.corrupt_ranks.update({rank - 1, rank} if ends_in_hole else {rank})
        ends_in_hole = data.endswith(HOLE)
        table.is_encrypted |= packet.has_sidedata("encryption_info")
        table.pts.append(packet.pts)
        table.dts.append(packet.dts)
        table.durations.append(packet.duration or 0)
        table.is_discarded.append(packet.is_discard)
        table.is_bidirectional.append(inspector.is_bidirectional(data))
        table.last.append(packet)
    table.num_lost += len(errors)
    return table
