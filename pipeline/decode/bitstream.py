"""What can be told from the bytes of a packet without decoding them.

Whether it holds a B-frame: the coding type stands in the first bits of each slice or picture.

H.264 and HEVC packets in MP4 and Matroska are rows of NAL units, each after its length. Inside a
unit encoders escape runs of zeros, so a hole of zeros, what an interrupted copy leaves, shows;
decoders often decode it to a frozen picture without an error.
"""

HOLE = bytes(4)
"""Three zeros and a one do occur: some muxers leave a start code inside a unit."""

_H264_SPS = 7
_HEVC_SPS = 33
_H264_SLICES = (1, 5)
_H264_B = 1
_MPEG2_PICTURE = b"\0\0\1\0"
_MPEG2_B = 3
_MPEG4_PICTURE = b"\0\0\1\xb6"
_MPEG4_B = 2
_START_CODE = b"\0\0\1"
_MAX_UNITS = 16
"""The first slice of a picture comes after a handful of headers."""


class PacketInspector:
    """Looks into the packets of one stream.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: the stream's header (avcC, hvcC), as the container gives it.
    """

    def __init__(self, codec: str, extradata: bytes) -> None:
        self._codec = codec
        self._extradata = extradata
        self._length_bytes = _length_bytes(codec, extradata)

    def is_damaged(self, packet: bytes) -> bool:
        """Whether no encoder can have written these bytes; False also means "cannot tell"."""
        if not self._length_bytes:
            return False
        units = self._units(packet)
        # Zeros after the last byte of a unit may be padding.
        return units is None or any(HOLE in unit.rstrip(b"\0") for unit in units)

    def is_bidirectional(self, packet: bytes) -> bool:
        """Whether the packet holds a B-frame; False also means "cannot tell"."""
        if self._codec == "h264":
            return _slice_type(self._first_slice(packet)) % 5 == _H264_B
        if self._codec == "mpeg4":
            kinds = (picture[:1] for picture in packet.split(_MPEG4_PICTURE)[1:])
            return any(kind and kind[0] >> 6 == _MPEG4_B for kind in kinds)
        if self._codec in ("mpeg1video", "mpeg2video"):
            kinds = (picture[1:2] for picture in packet.split(_MPEG2_PICTURE)[1:])
            return any(kind and kind[0] >> 3 & 7 == _MPEG2_B for kind in kinds)
        return False

    def size_header(self, keyframe: bytes) -> bytes:
        """What a keyframe says of its frame size beyond the stream's own header.

        Keyframes whose headers are equal have frames of equal size.
        """
        if self._codec == "vp8":
            return keyframe[6:10]
        units = self._units(keyframe) if self._length_bytes else None
        return b"".join(
            unit for unit in units or [] if self._is_sps(unit) and unit not in self._extradata
        )

    def _is_sps(self, unit: bytes) -> bool:
        if self._codec == "h264":
            return unit[0] & 31 == _H264_SPS
        return unit[0] >> 1 & 63 == _HEVC_SPS

    def _first_slice(self, packet: bytes) -> bytes:
        """The first slice of an H.264 picture; empty when there is none."""
        if self._length_bytes:
            units = self._units(packet) or []
        else:
            units = packet.split(_START_CODE, _MAX_UNITS)[1:]
        return next((unit for unit in units if unit and unit[0] & 31 in _H264_SLICES), b"")

    def _units(self, packet: bytes) -> list[bytes] | None:
        """The NAL units; None when their lengths do not fill the packet."""
        units, position = [], 0
        while position < len(packet):
            start = position + self._length_bytes
            position = start + int.from_bytes(packet[position:start], "big")
            if not start < position <= len(packet):
                return None
            units.append(packet[start:position])
        return units


def _length_bytes(codec: str, extradata: bytes) -> int:
    """Bytes of a NAL unit's length; 0 when units are not told apart by lengths."""
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        return (extradata[21] & 3) + 1
    return 0


def _slice_type(unit: bytes) -> int:
    """``slice_type`` of an H.264 slice (7.3.3), the second exp-Golomb number; -1 without one."""
    bits = "".join(f"{byte:08b}" for byte in unit[1:9])
    value = -1
    for _ in range(2):
        num_zeros = len(bits) - len(bits.lstrip("0"))
        value = int(bits[num_zeros : 2 * num_zeros + 1] or "0", 2) - 1
        bits = bits[2 * num_zeros + 1 :]
    return value
