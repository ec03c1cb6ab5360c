"""Every nasty clip, by every decoder that takes it, against what is known to be right."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode import FrameReader
from pipeline.decode.clips import read_counter
from schemas.config import DecodeConfig, SamplingConfig
from schemas.errors import DecodeError
from tests.decode.recipes import ffmpeg_picture

NASTY = Path(__file__).parents[2] / "../shared/videos/nasty"
pytestmark = pytest.mark.skipif(not NASTY.is_dir(), reason="the clips of ../shared are not here")


@dataclass(frozen=True)
class Right:
    """All frames are right; ``decoders`` take the clip, and counters begin at ``first``."""

    num_frames: int
    decoders: str
    first: int = 0
    rotation: int = 0


@dataclass(frozen=True)
class Partly:
    num_frames: int
    num_bad_packets: int
    num_good: int


@dataclass(frozen=True)
class Timed:
    """All frames are right; their counters are the pts at 30 frames per second."""

    num_frames: int
    decoders: str


EXPECTED = {
    "alpha_png.mov": Right(30, "pyav"),
    "alpha_vp9.webm": Right(90, "pyav"),
    "anim.gif": Right(30, "pyav"),
    "audio_first.mp4": Right(90, "pyav decord"),
    "audio_only.mp4": "no_video",
    "audio_with_cover.mp4": "no_video",
    "av1.mkv": Right(90, "pyav"),
    "av1.mp4": Right(90, "pyav"),
    "bomb_8192.mp4": "too_large",
    "bt709_limited.mp4": Right(90, "pyav decord"),
    "corrupt_middle.mp4": Partly(150, 34, 36),
    "corrupt_moov.mp4": "unreadable",
    "edit_list.mp4": Right(48, "pyav", first=42),
    "fps1.mp4": Right(12, "pyav decord"),
    "fps29_97.mp4": Right(90, "pyav decord"),
    "fragmented.mp4": Right(90, "pyav decord"),
    "full_range.mp4": Right(90, "pyav decord"),
    "garbage.mp4": "unreadable",
    "h264_10bit.mp4": Right(90, "pyav"),
    "hevc.mp4": Right(90, "pyav decord"),
    "hevc_10bit.mp4": Right(90, "pyav"),
    "long_gop.mp4": Right(600, "pyav decord"),
    "mjpeg.avi": Right(90, "pyav"),
    "mpeg4.avi": Right(90, "pyav"),
    "mpeg4_bframes.avi": Right(90, "pyav"),
    "name with spaces \u00e9 \u89c6\u9891 %d.mp4": Right(90, "pyav decord"),
    "odd_321x181_420.webm": Right(90, "pyav"),
    "odd_321x181_444.mp4": Right(90, "pyav"),
    "opengop_bframes.mp4": Right(150, "pyav"),
    "overcount_middle.mp4": Partly(150, 52, 51),
    "png_renamed.mp4": "not_a_video",
    "ref_h264.mp4": Right(90, "pyav decord"),
    "rot180.mp4": Right(90, "pyav", rotation=180),
    "rot90.mp4": Right(90, "pyav", rotation=90),
    "sar_2_1.mp4": Right(90, "pyav decord"),
    "single_frame.mp4": Right(1, "pyav decord"),
    "tall_64x1024.mp4": Right(90, "pyav decord"),
    "text.mp4": "not_a_video",
    "tiny_16x16.mp4": Right(30, "pyav decord"),
    "truncated_faststart.mp4": Partly(292, 309, 290),
    "truncated_no_moov.mp4": "unreadable",
    "two_frames.mp4": Right(2, "pyav decord"),
    "vfr_h264.mkv": Timed(57, "pyav decord"),
    "vfr_h264.mp4": Timed(57, "pyav decord"),
    "vp8.webm": Right(90, "pyav decord"),
    "vp9.webm": Right(90, "pyav"),
    "wide_2048x32.mp4": Right(90, "pyav decord"),
    "zero_byte.mp4": "unreadable",
}

SPARSE = SamplingConfig(num_frames=13)
ALL = SamplingConfig(fps=1000, max_frames=300)


POLICIES = (("auto", SPARSE), ("pyav", ALL), ("decord", SPARSE))


@pytest.fixture(scope="module")
def samples_of():
    """(decoder, sample) of a clip: a few frames, and all frames."""
    with ExitStack() as stack:
        readers = {
            policy: stack.enter_context(FrameReader(DecodeConfig(decoder=policy), sampling))
            for policy, sampling in POLICIES
        }

        def read(name):
            for policy, reader in readers.items():
                if policy != "decord" or "decord" in getattr(EXPECTED[name], "decoders", ""):
                    yield policy, reader.read(NASTY / name)
                else:
                    with pytest.raises(DecodeError) as caught:
                        reader.read(NASTY / name)
                    assert caught.value.kind == "unsupported_codec"

        yield read


def decoded_plainly(name):
    """All frames by the plainest PyAV program."""
    with av.open(str(NASTY / name)) as container:
        return list(container.decode(container.streams.best("video")))


TURNS = {0: (), 90: (("transpose", "cclock"),), 180: (("hflip", ""), ("vflip", ""))}


def assert_frames_equal(sample, plain, *, rotation=0):
    for index, frame in zip(sample.frame_indices, sample.frames, strict=True):
        expected = ffmpeg_picture(plain[index], TURNS[rotation])
        assert np.array_equal(frame, expected), f"frame {index} differs"


def names_of(kind):
    return [name for name, expected in EXPECTED.items() if isinstance(expected, kind)]


def test_the_table_names_every_clip():
    clips = {path.name for path in NASTY.iterdir() if path.suffix != ".csv"}
    assert clips == {*EXPECTED, "one_hour.mp4"}


@pytest.mark.parametrize("name", names_of(Right))
def test_every_frame_carries_the_number_it_was_asked_for(samples_of, name):
    expected = EXPECTED[name]
    plain = decoded_plainly(name)
    for policy, sample in samples_of(name):
        upright = np.rot90(sample.frames, -expected.rotation // 90, axes=(1, 2))
        counters = [read_counter(frame) for frame in upright]
        assert counters == [expected.first + index for index in sample.frame_indices]
        if len(sample.frames) <= SPARSE.num_frames:
            assert_frames_equal(sample, plain, rotation=expected.rotation)
        assert sample.probe.num_frames == expected.num_frames
        assert sample.probe.rotation == expected.rotation
        assert sample.num_bad_packets == 0
        assert sample.decoder == ("decord" if policy == "decord" else "pyav")


@pytest.mark.parametrize("name", names_of(Timed))
def test_frames_at_a_variable_rate_are_the_right_ones(samples_of, name):
    plain = decoded_plainly(name)
    times = [frame.time for frame in plain]
    for policy, sample in samples_of(name):
        counters = [read_counter(frame) for frame in sample.frames]
        assert counters == [round(times[index] * 30) for index in sample.frame_indices]
        assert_frames_equal(sample, plain)
        assert sample.probe.num_frames == EXPECTED[name].num_frames
        assert sample.probe.fps == pytest.approx(56 / (times[-1] - times[0]))
        assert sample.decoder == ("decord" if policy == "decord" else "pyav")


@pytest.mark.parametrize("name", names_of(Partly))
def test_a_damaged_video_gives_its_good_frames_and_counts_its_bad_packets(samples_of, name):
    expected = EXPECTED[name]
    samples = [sample for _, sample in samples_of(name)]
    for sample in samples:
        assert [read_counter(frame) for frame in sample.frames] == sample.frame_indices.tolist()
        assert sample.num_bad_packets == expected.num_bad_packets
        assert sample.probe.num_frames == expected.num_frames
    assert max(sample.frame_indices.size for sample in samples) == expected.num_good


@pytest.mark.parametrize("policy", ["auto", "pyav"])
def test_what_cannot_be_decoded_is_refused_with_its_kind_and_path(policy):
    with FrameReader(DecodeConfig(decoder=policy), SPARSE) as reader:
        for name in names_of(str):
            with pytest.raises(DecodeError) as caught:
                reader.read(NASTY / name)
            assert (name, caught.value.kind) == (name, EXPECTED[name])
            assert name in str(caught.value)


def test_an_edit_list_is_probed_as_its_shown_frames():
    with FrameReader(DecodeConfig(), SPARSE) as reader:
        probe = reader.probe(NASTY / "edit_list.mp4")
    assert (probe.num_frames, probe.num_declared_frames) == (48, 60)
    assert probe.duration_seconds == pytest.approx(1.6)


def test_demanding_decord_where_it_is_wrong_names_the_objection():
    with FrameReader(DecodeConfig(decoder="decord"), SPARSE) as reader:
        with pytest.raises(DecodeError, match="GOPs are open") as caught:
            reader.read(NASTY / "opengop_bframes.mp4")
        assert "--decoder auto" in str(caught.value)
        assert reader.read(NASTY / "ref_h264.mp4").decoder == "decord"


@pytest.mark.slow
def test_one_hour_is_sampled_by_jumping_not_by_decoding_everything():
    sampling = SamplingConfig(num_frames=32)
    samples = {}
    for decoder in ("auto", "decord"):
        deadline = DecodeConfig(decoder=decoder, deadline_seconds=60, deadline_per_second=0)
        with FrameReader(deadline, sampling) as reader:
            samples[decoder] = reader.read(NASTY / "one_hour.mp4")
    assert samples["auto"].frame_indices[-1] == 35_999
    np.testing.assert_array_equal(samples["auto"].frames, samples["decord"].frames)


@pytest.mark.slow
def test_frames_reached_by_jumping_equal_those_of_a_full_decode_of_one_hour():
    with FrameReader(DecodeConfig(decoder="pyav"), SamplingConfig(num_frames=32)) as reader:
        sample = reader.read(NASTY / "one_hour.mp4")
    wanted = dict(zip(sample.frame_indices.tolist(), sample.frames, strict=True))
    with av.open(str(NASTY / "one_hour.mp4")) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                np.testing.assert_array_equal(
                    wanted.pop(index), frame.to_ndarray(format="rgb24"), err_msg=str(index)
                )
    assert not wanted
