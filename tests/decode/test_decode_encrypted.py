"""Encrypted videos are named as such: copying them again would not help."""

import re

import av
import pytest

from pipeline.decode import FrameReader
from schemas.config import DecodeConfig, SamplingConfig
from schemas.errors import DecodeError
from tests.decode.recipes import Recipe, write_recipe

KEYS = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}


def refused(path):
    with (
        FrameReader(DecodeConfig(), SamplingConfig()) as reader,
        pytest.raises(DecodeError, match="without protection") as caught,
    ):
        reader.read(path)
    return caught.value.kind


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("flags", ["", "frag_keyframe+empty_moov"])
def test_common_encryption_in_mp4_is_named(tmp_path, suffix, flags):
    clear, locked = tmp_path / "clear.mp4", tmp_path / f"locked{suffix}"
    write_recipe(clear, Recipe())
    options = KEYS | ({"movflags": flags} if flags else {})
    with av.open(str(clear)) as source, av.open(str(locked), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert refused(locked) == "encrypted"


def test_encryption_in_matroska_is_named(tmp_path):
    path = tmp_path / "locked.mkv"
    write_recipe(path, Recipe(suffix=".mkv"))
    # ContentEncodings take the place of the track's number of the same length.
    encodings = bytes.fromhex("6d80400862408450338101")
    number = re.compile(rb"\x73\xc5\x88.{8}", re.DOTALL)
    data, num_changed = number.subn(encodings, path.read_bytes(), count=1)
    assert num_changed == 1
    path.write_bytes(data)
    assert refused(path) == "encrypted"


@pytest.mark.parametrize("part", [slice(None), slice(60, None), slice(30, 60)])
def test_a_transport_stream_is_named_where_any_part_of_it_is_scrambled(tmp_path, part):
    path = tmp_path / "locked.ts"
    write_recipe(path, Recipe(suffix=".ts"))
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 188)[part]:
        if int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF == 0x100:
            data[at + 3] |= 0x80
    path.write_bytes(data)
    assert refused(path) == "encrypted"


def test_a_clear_video_beside_encrypted_sound_is_no_encrypted_video(tmp_path):
    path = tmp_path / "sound.mkv"
    write_recipe(path, Recipe(suffix=".mkv", streams="after sound"))
    encodings = bytes.fromhex("6d80400762408450338101")
    number = re.compile(rb"\x73\xc5\x88.{8}", re.DOTALL)
    # The track of the sound comes first.
    path.write_bytes(number.sub(encodings, path.read_bytes(), count=1))
    with FrameReader(DecodeConfig(), SamplingConfig(fps=1000)) as reader:
        assert len(reader.read(path).frames) == 40
