"""Frames are counted, timed and chosen rightly whatever clock the container gives them."""

import random
import re
import struct

import pytest

from pipeline.decode import FrameReader
from pipeline.decode.clips import read_counter
from schemas.config import DecodeConfig, SamplingConfig
from tests.decode.recipes import Recipe, mostly_slow, write_recipe

NUM_FRAMES = 60
TS_PACKET = 188


@pytest.fixture(scope="module")
def readers():
    with (
        FrameReader(DecodeConfig(), SamplingConfig(fps=1000)) as everything,
        FrameReader(DecodeConfig(), SamplingConfig(num_frames=7)) as sparse,
    ):
        yield everything, sparse


def written(tmp_path, recipe):
    path = tmp_path / f"clip{recipe.suffix}"
    write_recipe(path, recipe)
    return path


def counters(sample):
    return [read_counter(frame) for frame in sample.frames]


def assert_healthy(readers, path, num_frames, fps=None):
    """All frames, each the one asked for, at the right rate, without a bad packet."""
    for reader in readers:
        sample = reader.read(path)
        assert counters(sample) == sample.frame_indices.tolist()
        assert (sample.probe.num_frames, sample.num_bad_packets) == (num_frames, 0)
        if fps is not None:
            assert sample.probe.fps == pytest.approx(fps, rel=0.01)
    assert readers[0].read(path).frame_indices.tolist() == list(range(num_frames))
    return sample


@pytest.mark.parametrize("bframes", mostly_slow([1, 2, 3], fast=[2]))
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_b_frames_without_presentation_times_come_in_display_order(
    readers, tmp_path, codec, suffix, bframes
):
    recipe = Recipe(codec=codec, suffix=suffix, bframes=bframes, has_pts=False)
    assert_healthy(readers, written(tmp_path, recipe), 40, fps=25)


def test_hevc_b_frames_without_presentation_times_come_in_display_order(readers, tmp_path):
    recipe = Recipe(codec="libx265", bframes=2, has_pts=False)
    assert_healthy(readers, written(tmp_path, recipe), 40, fps=25)


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_frames_left_out_of_an_avi_take_their_time(readers, tmp_path, codec):
    recipe = Recipe(codec=codec, suffix=".avi", times=tuple(range(0, 100, 5)))
    sample = assert_healthy(readers, written(tmp_path, recipe), 20, fps=5)
    assert sample.probe.duration_seconds == pytest.approx(4)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
@pytest.mark.parametrize("where", [0, 20, 38], ids=["first", "middle", "last"])
@pytest.mark.parametrize("pause", mostly_slow([2, 4, 60, 300], fast=[2]))
def test_a_pause_is_no_damage_wherever_it_is(readers, tmp_path, suffix, where, pause):
    times = [number + (pause - 1) * (number > where) for number in range(40)]
    recipe = Recipe(suffix=suffix, times=tuple(times), bframes=2)
    assert_healthy(readers, written(tmp_path, recipe), 40, fps=recipe.fps)


def test_a_pause_in_webm_is_no_damage(readers, tmp_path):
    times = (*range(36), 99)
    recipe = Recipe(codec="libvpx", suffix=".webm", times=times)
    sample = assert_healthy(readers, written(tmp_path, recipe), 37, fps=recipe.fps)
    assert sample.probe.duration_seconds == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("start_seconds", [7.0, 95435.0, 95443.0])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_transport_stream_may_start_late_and_its_clock_may_wrap(
    readers, tmp_path, codec, start_seconds
):
    recipe = Recipe(
        codec=codec,
        suffix=".ts",
        times=tuple(range(120)),
        bframes=2,
        start_seconds=start_seconds,
    )
    sample = assert_healthy(readers, written(tmp_path, recipe), 120, fps=25)
    assert sample.probe.duration_seconds == pytest.approx(4.8)


@pytest.mark.parametrize("num_bytes", [1, 100, 187])
def test_a_transport_stream_may_begin_within_a_packet(readers, tmp_path, num_bytes):
    path = written(tmp_path, Recipe(suffix=".ts"))
    path.write_bytes(path.read_bytes()[num_bytes:])
    assert_healthy(readers, path, 40, fps=25)


def lose_packets(data, generator, num_lost):
    at = generator.randrange(5, len(data) // TS_PACKET - num_lost) * TS_PACKET
    return data[:at] + data[at + num_lost * TS_PACKET :]


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265"])
@pytest.mark.parametrize("bframes", [0, 2])
def test_a_transport_stream_that_lost_packets_gives_its_good_frames(
    readers, tmp_path, codec, bframes
):
    recipe = Recipe(
        codec=codec, suffix=".ts", times=tuple(range(NUM_FRAMES)), bframes=bframes, gop=10
    )
    whole = written(tmp_path, recipe)
    data, generator = whole.read_bytes(), random.Random(5)
    num_given = 0
    for num_lost in (1, 1, 2, 5):
        path = tmp_path / "lost.ts"
        path.write_bytes(lose_packets(data, generator, num_lost))
        for reader in readers:
            sample = reader.read(path)
            assert counters(sample) == sample.frame_indices.tolist()
            assert sample.probe.fps == pytest.approx(25)
        num_given += readers[0].read(path).frame_indices.size
    assert num_given >= 2 * NUM_FRAMES


def test_damage_is_told_each_time_a_child_meets_it(tmp_path):
    """FFmpeg's log leaves out a line that repeats the one before."""
    recipe = Recipe(suffix=".mkv", times=tuple(range(NUM_FRAMES)), gop=10)
    path = written(tmp_path, recipe)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3] + data[len(data) // 3 + 3000 :])
    with FrameReader(DecodeConfig(), SamplingConfig(fps=1000)) as reader:
        samples = [reader.read(path) for _ in range(3)]
    assert samples[0].num_bad_packets > 0
    for sample in samples:
        assert counters(sample) == sample.frame_indices.tolist()
        assert sample.frame_indices.tolist() == samples[0].frame_indices.tolist()
        assert sample.num_bad_packets == samples[0].num_bad_packets


def video_packets(data):
    """Where the packets of the video lie in a transport stream."""
    return [
        at
        for at in range(0, len(data), TS_PACKET)
        if int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF == 0x100
    ]


def test_sixteen_lost_packets_that_no_counter_shows_shift_no_frame(readers, tmp_path):
    recipe = Recipe(suffix=".ts", times=tuple(range(90)), bframes=2)
    path = written(tmp_path, recipe)
    data = path.read_bytes()
    places = video_packets(data)
    gone = set(places[len(places) // 2 :][:16])
    kept = (data[at : at + TS_PACKET] for at in range(0, len(data), TS_PACKET) if at not in gone)
    path.write_bytes(b"".join(kept))
    sample = readers[0].read(path)
    assert sample.num_bad_packets > 0
    assert counters(sample) == sample.frame_indices.tolist()


@pytest.mark.parametrize("bframes", [0, 3])
def test_a_packet_sent_twice_makes_no_further_frame(readers, tmp_path, bframes):
    recipe = Recipe(suffix=".ts", times=tuple(range(NUM_FRAMES)), bframes=bframes)
    path = written(tmp_path, recipe)
    data = path.read_bytes()
    for at in video_packets(data)[40::60]:
        path.write_bytes(data[: at + TS_PACKET] + data[at:])
        sample = readers[0].read(path)
        assert counters(sample) == sample.frame_indices.tolist()
        assert sample.probe.num_frames == NUM_FRAMES


def test_a_pause_far_from_a_lost_packet_stays_a_pause(readers, tmp_path):
    times = (*range(40), *range(80, 120))
    path = written(tmp_path, Recipe(suffix=".ts", times=times, bframes=2, gop=8))
    data = path.read_bytes()
    at = video_packets(data)[20]
    path.write_bytes(data[:at] + data[at + TS_PACKET :])
    sample = readers[0].read(path)
    assert counters(sample) == sample.frame_indices.tolist()
    assert sample.probe.num_frames == 80
    assert len(sample.frames) >= 60


def test_joined_transport_streams_may_differ_in_rate(readers, tmp_path):
    parts = [
        written(tmp_path, Recipe(suffix=".ts", rate=rate, bframes=2)).read_bytes()
        for rate in (25, 50)
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    sample = readers[0].read(path)
    assert counters(sample) == [index % 40 for index in sample.frame_indices]
    assert len(sample.frames) >= 76


def test_an_flv_may_be_joined_pause_for_long_and_begin_late(readers, tmp_path):
    data = written(tmp_path, Recipe(suffix=".flv", bframes=2)).read_bytes()
    joined = tmp_path / "joined.flv"
    joined.write_bytes(data + data[13:])
    sample = readers[0].read(joined)
    assert counters(sample) == [index % 40 for index in range(80)]
    assert sample.probe.fps == pytest.approx(25)
    times = (*range(20), *range(20 + 90 * 25, 40 + 90 * 25))
    paused = Recipe(suffix=".flv", times=times, bframes=2, gop=8)
    assert_healthy(readers, written(tmp_path, paused), 40, fps=paused.fps)
    late = written(tmp_path, Recipe(suffix=".flv", bframes=2, start_seconds=500.0))
    late.write_bytes(late.read_bytes()[:-4000])
    sample = readers[0].read(late)
    assert len(sample.frames) > 20
    assert counters(sample) == sample.frame_indices.tolist()


@pytest.mark.parametrize("starts", [(0.0, 0.0), (100.0, 0.0), (0.0, 100.0)])
def test_joined_transport_streams_follow_one_another(readers, tmp_path, starts):
    parts = [
        written(
            tmp_path,
            Recipe(suffix=".ts", times=tuple(range(40)), bframes=2, start_seconds=start),
        ).read_bytes()
        for start in starts
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    sample = readers[0].read(path)
    assert counters(sample) == [index % 40 for index in sample.frame_indices]
    assert sample.probe.num_frames == 80
    assert len(sample.frames) >= 76
    assert sample.probe.fps == pytest.approx(25)
    assert sample.probe.duration_seconds == pytest.approx(3.2)


def overstated(data, seconds):
    """A Matroska file whose header promises so many seconds, as some cameras do."""
    at = re.search(rb"\x44\x89\x88", data).end()
    data = data[:at] + struct.pack(">d", seconds * 1000) + data[at + 8 :]
    return re.sub(rb"00:00:\d\d(?=\.\d{9})", b"00:00:%02d" % seconds, data)


def test_a_duration_that_says_too_much_is_not_believed(readers, tmp_path):
    path = written(tmp_path, Recipe(suffix=".mkv", bframes=2))
    path.write_bytes(overstated(path.read_bytes(), 40))
    sample = assert_healthy(readers, path, 40, fps=25)
    assert sample.probe.duration_seconds == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx264", ".ts"),
        ("libx264", ".mkv"),
        ("libx264", ".flv"),
        ("libx264", ".mp4"),
        ("mpeg4", ".avi"),
        ("mpeg2video", ".ts"),
        ("mpeg2video", ".mpg"),
    ],
)
@pytest.mark.parametrize("part", mostly_slow([0.35, 0.6, 0.85], fast=[0.6]))
def test_a_file_cut_short_keeps_the_rate_of_what_is_left(readers, tmp_path, codec, suffix, part):
    recipe = Recipe(
        codec=codec, suffix=suffix, times=tuple(range(NUM_FRAMES)), bframes=2, is_index_first=True
    )
    path = written(tmp_path, recipe)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    sample = readers[0].read(path)
    assert counters(sample) == sample.frame_indices.tolist()
    assert len(sample.frames) >= 0.6 * part * NUM_FRAMES
    assert sample.probe.fps == pytest.approx(25, rel=1e-3)
