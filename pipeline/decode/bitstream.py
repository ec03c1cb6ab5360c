"""What can be told from the bytes of a packet without decoding them.

H.264 and HEVC packets in MP4 and Matroska are rows of NAL units, each after its length. Inside a
unit encoders escape runs of zeros, so a hole of zeros, what an interrupted copy leaves, shows;
decoders often decode it to a frozen picture without an error.
"""

HOLE = bytes(4)
"""Three zeros and a one do occur: some muxers leave a start code inside a unit."""

_H264_SPS = 7
_HEVC_SPS = 33


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
