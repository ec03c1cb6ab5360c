"""The numbers by which some codecs put their pictures in order, whatever the clock says.

Between the last two frames of a recording that was cut short others may be missing; between those
of a recording that paused there are none. Their times look alike, their numbers do not.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.stream import VideoStream

from pipeline.decode.clock import Clock
from pipeline.decode.container import VideoPacket
from pipeline.decode.packets import PacketTable

_INSTANT_REFRESH = {"h264": (5,), "hevc": (19, 20), "mpeg2video": ()}
"""Types of units after which numbers start anew and nothing earlier is shown, by codec."""

_FIELD = re.compile(
    r"\d+\s+(nal_unit_type|(?:slice_)?pic_order_cnt_lsb|temporal_reference)\s+([01]+) = (\d+)\s*"
)


@dataclass(frozen=True, slots=True)
class _Number:
    """``value`` counts modulo ``modulus``; both are 0 in a picture that starts anew."""

    value: int
    modulus: int

    @property
    def starts_anew(self) -> bool:
        return not self.modulus


def directly_follows(
    stream: VideoStream, table: PacketTable, clock: Clock, index: int
) -> bool | None:
    """Whether no picture is missing between the frames shown at ``index`` and ``index + 1``.

    None when the last packets of the table do not say.
    """
    codec = stream.codec_context.codec.canonical_name
    if codec not in _INSTANT_REFRESH:
        return None
    first = len(table) - len(table.last)
    numbers = dict(enumerate(_picture_numbers(stream, codec, table.last), start=first))
    shown = [numbers.get(rank) for rank in np.argsort(clock.labels, kind="stable").tolist()]
    following = shown[index + 1]
    if following and following.starts_anew:
        return True
    steps = [_step(before, after) for before, after in pairwise(shown)]
    known = sorted(step for step in steps if step)
    return steps[index] == known[0] if len(known) > 1 and steps[index] else None


def _step(before: _Number | None, after: _Number | None) -> int:
    """From one number to the next; 0 when it cannot be told."""
    if not before or not after or before.starts_anew or after.starts_anew:
        return 0
    return (after.value - before.value) % after.modulus


def _picture_numbers(
    stream: VideoStream, codec: str, packets: Iterable[VideoPacket]
) -> list[_Number | None]:
    """The number of the first slice of each packet, read by FFmpeg's own parser."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        parser = BitStreamFilterContext("trace_headers", stream)
        with av.logging.Capture() as lines:
            numbers = []
            for packet in packets:
                begin = len(lines)
                parser.filter(packet)
                numbers.append(_first_number([text for *_, text in lines[begin:]], codec))
        return numbers
    except av.error.FFmpegError:
        return []
    finally:
        av.logging.set_level(level)


def _first_number(lines: Iterable[str], codec: str) -> _Number | None:
    for match in filter(None, map(_FIELD.match, lines)):
        name, bits, value = match.groups()
        if name != "nal_unit_type":
            starts_anew = name == "temporal_reference" and value == "0"
            return _Number(int(value), 0 if starts_anew else 1 << len(bits))
        if int(value) in _INSTANT_REFRESH[codec]:
            return _Number(0, 0)
    return None
