"""One video file opened with FFmpeg (PyAV): one demuxer, one stream, local bytes only."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TypeAlias

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from pipeline.decode.encryption import encrypted, file_is_encrypted
from schemas.errors import DecodeError

VideoPacket: TypeAlias = "Packet[VideoStream]"

PYAV_VERSION = version("av")

MAX_DEMUX_ERRORS = 64


_DEFAULT_BONUS = 5_000_000
"""What the default flag of a stream is worth in pixels, to ffmpeg as to us."""


@contextmanager
def open_video(
    path: str, demuxer: str, *, stream_index: int | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open one video stream of ``path``: that of ``stream_index``, else the best one.

    Raises:
        DecodeError: "unreadable", "encrypted", "no_video" or "unsupported_codec".
    """
    try:
        container = av.open(path, format=demuxer, options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if file_is_encrypted(path, demuxer):
            raise encrypted(path) from error
        raise DecodeError(
            "unreadable",
            f"{path} looks like {demuxer}, but FFmpeg cannot open it ({_reason(error)}): "
            "the file is damaged or cut short",
        ) from error
    with container:
        if not container.streams and file_is_encrypted(path, demuxer):
            raise encrypted(path)
        if stream_index is None:
            stream = _best_stream(container, path)
        else:
            stream = next(s for s in container.streams.video if s.index == stream_index)
        yield container, _decodable(stream, path, demuxer)


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


def video_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams, best first, cover pictures left out.

    This is ffmpeg's own choice (``map_auto_video``): the largest frame, with a large bonus for
    the stream that the container calls the default one; the earlier of equals.
    """
    streams = [stream for stream in container.streams.video if not _is_picture(stream)]
    return sorted(streams, key=_merit, reverse=True)


def _best_stream(container: InputContainer, path: str) -> VideoStream:
    kinds = sorted({stream.type for stream in container.streams})
    if not {"video", "audio", "subtitle"} & set(kinds):
        raise DecodeError(
            "unreadable",
            f"{path} opens but lists no video, sound or text stream (found: {kinds}): its header "
            "is damaged",
        )
    streams = video_streams(container)
    if not streams:
        raise DecodeError(
            "no_video",
            f"{path} has no video stream (found: {kinds}); cover pictures do not count",
        )
    return next((stream for stream in streams if _may_hold_packets(stream)), streams[0])


def _decodable(stream: VideoStream, path: str, demuxer: str) -> VideoStream:
    if stream.codec_context is None:
        raise _undecodable(path, demuxer)
    return stream


def _undecodable(path: str, demuxer: str) -> DecodeError:
    if file_is_encrypted(path, demuxer):
        return encrypted(path)
    return DecodeError(
        "unsupported_codec",
        f"{path} uses a video codec that PyAV {PYAV_VERSION} has no decoder for: convert it, "
        "for example to H.264",
    )


def _merit(stream: VideoStream) -> int:
    is_default = bool(stream.disposition & av.stream.Disposition.default)
    context = stream.codec_context
    return (context.width * context.height if context else 0) + _DEFAULT_BONUS * is_default


def _may_hold_packets(stream: VideoStream) -> bool:
    """False for a track whose table of frames is empty; other formats keep no such table."""
    return not stream.container.format.name.startswith("mov") or bool(stream.index_entries)


def _is_picture(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
