"""Whether somebody locked a video: it looks like damage to a decoder, and copying does not help."""

import re
from pathlib import Path

import numpy as np
from av.video.stream import VideoStream

from pipeline.decode.sniff import TS_SYNC, first_ts_packet
from schemas.errors import DecodeError

_MEGABYTE = 2**20

_MP4_SCHEME = re.compile(rb"schm\0\0\0[\0\1](?:cenc|cens|cbc1|cbcs|piff|itun)")
"""The box that names a scheme of Common Encryption (ISO/IEC 23001-7), or FairPlay."""

_MP4_TAGS = ("encv", "drmi", "drmt")
"""Sample entries of Common Encryption and of FairPlay."""

_MATROSKA_ENCODING = re.compile(rb"\x62\x40.{1,64}?\x50\x33\x81\x01", re.DOTALL)
"""A ContentEncoding whose ContentEncodingType is 1: encryption."""

_MATROSKA_CLUSTER = b"\x1f\x43\xb6\x75"
"""Where the headers end."""

_ASF_OBJECTS = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),
)
"""The Content Encryption Object and the Extended one."""

_TS_HEAD_BYTES = 4096
_TS_PACKETS_AT_ONCE = 2**15


def encrypted(path: str) -> DecodeError:
    """The error that says that ``path`` is encrypted."""
    return DecodeError(
        "encrypted",
        f"{path} is encrypted (DRM), and its key is not here: get a copy without protection",
    )


def file_is_encrypted(path: str, demuxer: str) -> bool:
    """Whether the bytes of a file say that something in it is encrypted."""
    with Path(path).open("rb") as file:
        head = file.read(_MEGABYTE)
        file.seek(max(0, Path(path).stat().st_size - _MEGABYTE))
        tail = file.read(_MEGABYTE) if demuxer == "mov" else b""
    if demuxer == "mov":
        return any(_MP4_SCHEME.search(part) for part in (head, tail))
    if demuxer == "matroska":
        return bool(_MATROSKA_ENCODING.search(head.partition(_MATROSKA_CLUSTER)[0]))
    return demuxer == "asf" and any(guid in head for guid in _ASF_OBJECTS)


def stream_is_encrypted(path: str, demuxer: str, stream: VideoStream) -> bool:
    """Whether this stream is encrypted, as far as that is known before it is decoded."""
    if demuxer == "mov":
        return stream.codec_context.codec_tag in _MP4_TAGS
    return demuxer == "mpegts" and _is_scrambled(path, stream.id)


def _is_scrambled(path: str, pid: int) -> bool:
    """Whether packets of the stream carry a scrambled payload (ISO/IEC 13818-1, 2.4.3.2)."""
    with Path(path).open("rb") as file:
        first = first_ts_packet(file.read(_TS_HEAD_BYTES))
        if first is None:
            return False
        begin, step = first
        file.seek(begin)
        num_scrambled = 0
        while len(part := file.read(step * _TS_PACKETS_AT_ONCE)) >= step:
            packets = np.frombuffer(part, np.uint8, len(part) // step * step).reshape(-1, step)
            pids = (packets[:, 1] & 0x1F).astype(np.int64) << 8 | packets[:, 2]
            is_ours = (packets[:, 0] == TS_SYNC) & (pids == pid)
            num_scrambled += int(np.count_nonzero(packets[is_ours, 3] >> 6))
    # A flipped bit makes one packet look so.
    return num_scrambled > 1
