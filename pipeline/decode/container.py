"""One video file opened with FFmpeg (PyAV): one demuxer, one stream, local bytes only."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TypeAlias

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from schemas.errors import DecodeError

VideoPacket: TypeAlias = "Packet[VideoStream]"

PYAV_VERSION = version("av")

MAX_DEMUX_ERRORS = 64


@contextmanager
def open_video(path: str, demuxer: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the best video stream of ``path``.

    Raises:
        DecodeError: "unreadable", "no_video" or "unsupported_codec".
    """
    try:
        container = av.open(path, format=demuxer, options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(
            "unreadable",
            f"{path} looks like {demuxer}, but FFmpeg cannot open it ({_reason(error)}): "
            "the file is damaged or cut short",
        ) from error
    with container:
        yield container, _best_stream(container, path)


def use_decoder(stream: VideoStream, *, threads: int, max_frame_pixels: int) -> None:
    """Set up the decoder: damage raises instead of being painted over, giant frames too."""
    context = stream.codec_context
    context.thread_count = threads
    context.thread_type = "AUTO" if threads > 1 else "NONE"
    context.options = {"err_detect": "explode", "max_pixels": str(max_frame_pixels)}


def read_packets(
    container: InputContainer, stream: VideoStream, errors: list[str] | None = None
) -> Iterator[VideoPacket]:
    """The packets of ``stream`` in decode order, reading on past demuxer errors.

    Args:
        container: where to read, from its present position to the end.
        stream: whose packets.
        errors: receives what the demuxer complained about, when given.
    """
    for _ in range(MAX_DEMUX_ERRORS):
        try:
            yield from (packet for packet in container.demux(stream) if packet.size)
            return
        except av.error.FFmpegError as error:
            if errors is not None:
                errors.append(_reason(error))


def upright_rotation(frame: VideoFrame) -> int:
    """Degrees, counter-clockwise, by which ``frame`` is to be turned: 0, 90, 180 or 270."""
    return round(frame.rotation / 90) * 90 % 360


def _best_stream(container: InputContainer, path: str) -> VideoStream:
    kinds = sorted({stream.type for stream in container.streams})
    if not {"video", "audio", "subtitle"} & set(kinds):
        raise DecodeError(
            "unreadable",
            f"{path} opens but lists no video, sound or text stream (found: {kinds}): its header "
            "is damaged",
        )
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or _is_picture(stream):
        raise DecodeError(
            "no_video",
            f"{path} has no video stream (found: {kinds}); cover pictures do not count",
        )
    if stream.codec_context is None:
        raise DecodeError(
            "unsupported_codec",
            f"{path} uses a video codec that PyAV {PYAV_VERSION} has no decoder for: convert it, "
            "for example to H.264",
        )
    return stream


def _is_picture(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
