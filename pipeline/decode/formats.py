"""What each container format makes sure of, and what it leaves open."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContainerFormat:
    """Facts about one format; the defaults are those of a format that makes sure of nothing.

    ``is_indexed``: damage cannot hide a packet between others. ``counts_packets``: packets are
    numbered, in few bits, so that most losses show. ``may_begin_anywhere``: a recording need not
    begin with a keyframe. ``may_be_joined``: one file may follow another, and the clock starts
    anew there. ``begins_at_zero``: so does the clock, as a rule. ``has_pauses``: the time from one
    frame to the next may vary. ``has_pts``: frames have times of presentation of their own.
    ``times_all_frames``: it gives a time to each of them; otherwise those after a loss are too
    early. ``warns_of_losses``: FFmpeg calls a loss in it a mere warning.
    """

    is_indexed: bool = False
    counts_packets: bool = False
    may_begin_anywhere: bool = False
    may_be_joined: bool = False
    begins_at_zero: bool = False
    has_pauses: bool = True
    has_pts: bool = True
    times_all_frames: bool = True
    warns_of_losses: bool = False


_FORMATS = {
    "mov": ContainerFormat(is_indexed=True),
    "gif": ContainerFormat(is_indexed=True),
    "matroska": ContainerFormat(begins_at_zero=True),
    "avi": ContainerFormat(has_pts=False),
    "flv": ContainerFormat(begins_at_zero=True, may_be_joined=True, warns_of_losses=True),
    "mpegts": ContainerFormat(
        counts_packets=True, may_begin_anywhere=True, may_be_joined=True, warns_of_losses=True
    ),
    "mpeg": ContainerFormat(
        may_begin_anywhere=True, may_be_joined=True, has_pauses=False, times_all_frames=False
    ),
}


def format_of(demuxer: str) -> ContainerFormat:
    """The facts about the format that FFmpeg's ``demuxer`` reads."""
    return _FORMATS.get(demuxer, ContainerFormat())
