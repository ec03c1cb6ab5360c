"""Clips cut short and clips with holes of zeros: fewer frames perhaps, a wrong one never."""

import random

import pytest

from pipeline.decode import FrameReader
from pipeline.decode.clips import read_counter, write_counter_clip
from schemas.config import DecodeConfig, SamplingConfig
from schemas.errors import DecodeError

NUM_FRAMES = 60

CLIPS = {
    "closed.mp4": {},
    "bframes.mp4": {"bframes": 3},
    "opengop.mp4": {"bframes": 3, "options": {"x264-params": "open-gop=1"}},
    "bframes.mkv": {"bframes": 3},
    "mjpeg.avi": {"codec": "mjpeg"},
    "bframes.flv": {"bframes": 2},
}


@pytest.fixture(scope="module")
def readers():
    decode = DecodeConfig(deadline_seconds=20)
    with (
        FrameReader(decode, SamplingConfig(fps=1000)) as everything,
        FrameReader(decode, SamplingConfig(num_frames=7)) as sparse,
    ):
        yield everything, sparse


@pytest.fixture(scope="module", params=CLIPS)
def clip(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / request.param
    write_counter_clip(
        path, num_frames=NUM_FRAMES, width=160, height=96, gop=12, **CLIPS[request.param]
    )
    return path


def read_or_refused(reader, path):
    """The sample, or None where the video is refused for what it is; a crash is neither."""
    try:
        return reader.read(path)
    except DecodeError as error:
        if error.kind in ("timeout", "decoder_crash"):
            raise
        return None


def frames_are_right_or_refused(readers, path):
    """How many of the readers gave frames; none a wrong one, none a crash."""
    num_given = 0
    for reader in readers:
        sample = read_or_refused(reader, path)
        if sample:
            counters = [read_counter(frame) for frame in sample.frames]
            assert counters == sample.frame_indices.tolist()
            num_given += 1
    return num_given


def media_range(data, suffix):
    """Where the coded frames lie, headers left out: what zeros do to those nobody can notice."""
    if suffix == ".mp4":
        begin = data.index(b"mdat") + 4
        # The encoder introduces itself in the first kilobyte.
        return begin + 1000, data.index(b"moov") - 4
    return 5000, len(data) - 2000


def test_an_undamaged_clip_gives_all_its_frames(readers, clip):
    sample = readers[0].read(clip)
    assert sample.frame_indices.tolist() == list(range(NUM_FRAMES))
    assert frames_are_right_or_refused(readers, clip) == 2


def test_a_truncated_clip_never_gives_a_wrong_frame(readers, clip):
    data = clip.read_bytes()
    cut = clip.with_name("cut" + clip.suffix)
    given = []
    for tenth in range(1, 10, 2):
        cut.write_bytes(data[: len(data) * tenth // 10])
        given.append(frames_are_right_or_refused(readers, cut))
    # An MP4 keeps its table of frames at the end.
    assert any(given) == (clip.suffix != ".mp4")


def test_a_hole_of_zeros_never_gives_a_wrong_frame(readers, clip):
    generator = random.Random(7)
    data = clip.read_bytes()
    begin, end = media_range(data, clip.suffix)
    holed = clip.with_name("holed" + clip.suffix)
    num_given = 0
    for num_bytes in (16, 64, 300, 1500) * 2:
        start = generator.randrange(begin, end - num_bytes)
        holed.write_bytes(data[:start] + bytes(num_bytes) + data[start + num_bytes :])
        num_given += frames_are_right_or_refused(readers, holed)
    assert num_given > 0


def test_flipped_bits_never_take_the_reader_down(readers, clip):
    generator = random.Random(11)
    flipped = clip.with_name("flipped" + clip.suffix)
    for _ in range(4):
        data = bytearray(clip.read_bytes())
        for _ in range(20):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(4)
        flipped.write_bytes(data)
        read_or_refused(readers[0], flipped)
    assert frames_are_right_or_refused(readers, clip) == 2
