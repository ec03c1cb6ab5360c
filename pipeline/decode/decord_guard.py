"""When decord may be trusted: only where it was measured to equal FFmpeg bit for bit."""

import importlib.util
from dataclasses import dataclass

_DEMUXERS = ("mov", "matroska")
_CODECS = ("h264", "hevc", "vp8")
_PIXEL_FORMATS = ("yuv420p", "yuvj420p")


@dataclass(frozen=True, slots=True)
class PacketFacts:
    """What a scan of the packets found, as far as decord minds it."""

    demuxer: str
    codec: str
    pixel_format: str
    width: int
    height: int
    first_pts: int
    num_streams: int
    num_discarded: int
    num_bad: int
    is_ordered: bool
    is_turned: bool
    has_open_gop: bool
    has_size_changes: bool


def decord_objection(facts: PacketFacts) -> str:
    """Why decord may not decode this video; empty when it may."""
    objections = (
        (facts.demuxer not in _DEMUXERS, f"the container is {facts.demuxer}"),
        (facts.codec not in _CODECS, f"the codec is {facts.codec}"),
        (facts.pixel_format not in _PIXEL_FORMATS, f"pixels are {facts.pixel_format or 'unknown'}"),
        (facts.width % 2 or facts.height % 2, f"{facts.width}x{facts.height} is odd"),
        (facts.num_streams > 1, f"it would choose among {facts.num_streams} video streams itself"),
        (facts.is_turned, "frames have to be turned or mirrored"),
        (not facts.is_ordered, "the order of frames is known only after decoding"),
        (facts.first_pts < 0, "the first pts is negative"),
        (facts.num_discarded, "an edit list discards packets"),
        (facts.num_bad, f"{facts.num_bad} packets are damaged or missing"),
        (facts.has_open_gop, "the GOPs are open"),
        (facts.has_size_changes, "the frame size may change midway"),
        (importlib.util.find_spec("decord") is None, "decord is not installed"),
    )
    return next((reason for objects, reason in objections if objects), "")
