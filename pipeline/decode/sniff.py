"""What a file is, judged by its first bytes: the FFmpeg demuxer to force, or a refusal.

FFmpeg would guess, and its guesses include playlists and scripts that name other files.
"""

import os
import re
import stat

from schemas.errors import DecodeError

_HEAD_BYTES = 4096

_TS_PACKET_BYTES = (188, 192, 204)
TS_SYNC = 0x47

_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot", b"styp")

_VIDEO_MAGIC = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"FLV\x01", "flv"),
    (b"OggS", "ogg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"DKIF", "ivf"),
    (b"YUV4MPEG2 ", "yuv4mpegpipe"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01", "mxf"),
)

_OTHER_MAGIC = (
    (b"#EXTM3U", "an HLS playlist"),
    (b"ffconcat", "an ffconcat script"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"ID3", "an MP3 sound file"),
    (b"fLaC", "a FLAC sound file"),
)

_IMAGE_BRANDS = (b"heic", b"heix", b"mif1", b"avif")
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")


def sniff_demuxer(path: str) -> str:
    """The name of the FFmpeg demuxer for the file at ``path``.

    Raises:
        DecodeError: "missing", "unreadable" (no regular file, empty, no format known here) or
            "not_a_video" (a playlist, an image, text, an archive).
    """
    head = _read_head(path)
    if not head:
        raise DecodeError("unreadable", f"{path} is empty (0 bytes): copy or download it again")
    demuxer = _video_demuxer(head)
    if demuxer:
        return demuxer
    other = _other_kind(head)
    if other:
        raise DecodeError(
            "not_a_video", f"{path} is {other}, not a video, whatever its name says; remove it"
        )
    raise DecodeError(
        "unreadable",
        f"{path} begins with {head[:8].hex(' ')}, which is no video format known here; "
        "it is damaged or needs converting, for example to MP4",
    )


def _read_head(path: str) -> bytes:
    try:
        # Opening a pipe that nobody writes to would wait forever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DecodeError(
            "missing", f"{path} does not exist: is the corpus still there?"
        ) from error
    except (OSError, ValueError) as error:
        raise DecodeError("unreadable", f"{path} cannot be opened: {error}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DecodeError("unreadable", f"{path} is not a regular file: name a video file")
        return os.read(fd, _HEAD_BYTES)
    except OSError as error:
        raise DecodeError("unreadable", f"{path} cannot be read: {error}") from error
    finally:
        os.close(fd)


def _video_demuxer(head: bytes) -> str:
    if head[4:8] in _MOV_BOXES and head[8:12] not in _IMAGE_BRANDS:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX"):
        return "avi"
    for magic, demuxer in _VIDEO_MAGIC:
        if head.startswith(magic):
            return demuxer
    return "mpegts" if first_ts_packet(head) else ""


def first_ts_packet(head: bytes) -> tuple[int, int] | None:
    """Where the first whole packet of a transport stream begins, and from one to the next.

    A recording may begin midway through a packet; then more packets are asked for as a proof.
    """
    for step in _TS_PACKET_BYTES:
        for begin in range(step):
            syncs = head[begin::step]
            # In M2TS four bytes of time go before each packet.
            is_border = begin == (4 if step == 192 else 0)
            if len(syncs) >= (2 if is_border else 10) and set(syncs) == {TS_SYNC}:
                return begin, step
    return None


def _other_kind(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, kind in _OTHER_MAGIC:
        if text.startswith(magic):
            return kind
    if head[:4] == b"RIFF":
        return "a WebP image" if head[8:12] == b"WEBP" else "a RIFF file without video"
    if head[4:8] == b"ftyp":
        return "a HEIF or AVIF image"
    if text.startswith(b"<"):
        return "an HTML or XML document"
    return "text" if _TEXT.fullmatch(head) else ""
