"""The picture of a frame is the one ffmpeg shows: upright, of the right stream, of one size.

The second opinion is FFmpeg 8, which PyAV bundles.
"""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from pipeline.decode import FrameReader
from pipeline.decode.clips import counter_image, read_counter
from schemas.config import DecodeConfig, SamplingConfig
from schemas.errors import DecodeError
from tests.decode.recipes import (
    HEIGHT,
    MATRICES,
    UPRIGHT,
    WIDTH,
    Recipe,
    ffmpeg_picture,
    mostly_slow,
    write_recipe,
)

ALL = SamplingConfig(fps=1000)
SHORT = tuple(range(8))
DECODERS = ("auto", "pyav", "decord")


@pytest.fixture(scope="module")
def readers():
    made = {decoder: FrameReader(DecodeConfig(decoder=decoder), ALL) for decoder in DECODERS}
    yield made
    for reader in made.values():
        reader.close()


def counters(sample):
    return [read_counter(frame) for frame in sample.frames]


def stored_frames(path, stream_index=0):
    with av.open(str(path)) as container:
        return list(container.decode(container.streams[stream_index]))


def same_by_every_decoder(readers, path):
    """The sample by PyAV; decord gives the same or refuses by name."""
    sample = readers["pyav"].read(path)
    np.testing.assert_array_equal(readers["auto"].read(path).frames, sample.frames)
    if sample.probe.decord_objection:
        with pytest.raises(DecodeError) as caught:
            readers["decord"].read(path)
        assert caught.value.kind == "unsupported_codec"
    else:
        np.testing.assert_array_equal(readers["decord"].read(path).frames, sample.frames)
    return sample


@pytest.mark.parametrize("suffix", mostly_slow([".mp4", ".mov", ".mkv"], fast=[".mkv"]))
@pytest.mark.parametrize("matrix", MATRICES)
def test_every_way_to_turn_and_mirror_a_picture_is_undone(readers, tmp_path, matrix, suffix):
    path = tmp_path / f"turned{suffix}"
    write_recipe(path, Recipe(suffix=suffix, times=SHORT, matrix=matrix))
    sample = same_by_every_decoder(readers, path)
    assert counters(sample) == list(SHORT)
    assert (sample.probe.width, sample.probe.height) == (WIDTH, HEIGHT)
    assert sample.probe.is_mirrored == (matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0)
    for frame, stored in zip(sample.frames, stored_frames(path), strict=True):
        np.testing.assert_array_equal(frame, ffmpeg_picture(stored, MATRICES[matrix]))


def test_an_orientation_that_the_encoder_says_once_holds_for_all_frames(readers, tmp_path):
    plain, path = tmp_path / "plain.ts", tmp_path / "said.ts"
    write_recipe(plain, Recipe(suffix=".ts", times=SHORT, gop=250))
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        insert = BitStreamFilterContext(
            "h264_metadata=display_orientation=insert:rotate=180", source.streams.video[0]
        )
        for packet in source.demux(video=0):
            for changed in insert.filter(packet if packet.size else None):
                changed.stream = stream
                target.mux(changed)
    sample = readers["auto"].read(path)
    assert sample.probe.rotation == 180
    assert [read_counter(frame[::-1, ::-1]) for frame in sample.frames] == list(SHORT)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_track_without_frames_is_passed_over(readers, tmp_path, suffix):
    path = tmp_path / f"empty{suffix}"
    with av.open(str(path), "w") as container:
        empty = container.add_stream("libx264", rate=25)
        empty.width, empty.height, empty.pix_fmt = 640, 480, "yuv420p"
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.max_b_frames = 0
        for number in SHORT:
            image = counter_image(WIDTH, HEIGHT, number)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
    assert counters(readers["auto"].read(path)) == list(SHORT)


def test_a_matrix_that_only_scales_turns_nothing(readers, tmp_path):
    path = tmp_path / "scaled.mp4"
    write_recipe(path, Recipe(times=SHORT, matrix=(2, 0, 0, 2)))
    assert counters(readers["auto"].read(path)) == list(SHORT)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_of_two_equal_tracks_the_default_one_is_taken(readers, tmp_path, suffix):
    path = tmp_path / f"two{suffix}"
    write_recipe(path, Recipe(suffix=suffix, times=SHORT, streams="second and default"))
    sample = same_by_every_decoder(readers, path)
    assert counters(sample) == list(SHORT)
    assert sample.probe.stream_index == 1


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_of_two_tracks_alike_the_larger_one_is_taken(readers, tmp_path, suffix):
    path = tmp_path / f"two{suffix}"
    write_recipe(path, Recipe(suffix=suffix, times=SHORT, streams="beside a smaller one"))
    sample = same_by_every_decoder(readers, path)
    assert counters(sample) == list(SHORT)
    assert sample.probe.stream_index == 1


def test_a_cover_picture_is_never_taken_for_the_video(readers, tmp_path):
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 640, 480, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        picture = np.zeros((480, 640, 3), np.uint8)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for number in SHORT:
            image = counter_image(WIDTH, HEIGHT, number)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
    sample = same_by_every_decoder(readers, path)
    assert counters(sample) == list(SHORT)


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", ".mp4", {"x264-params": "tff=1"}),
        ("libx264", ".mkv", {"x264-params": "bff=1"}),
        ("mpeg2video", ".ts", {"flags": "+ildct+ilme"}),
    ],
)
def test_an_interlaced_picture_is_that_of_ffmpeg(readers, tmp_path, codec, suffix, options):
    path = tmp_path / f"interlaced{suffix}"
    write_recipe(path, Recipe(codec=codec, suffix=suffix, times=SHORT, options=options))
    stored = stored_frames(path)
    assert all(frame.interlaced_frame for frame in stored)
    sample = same_by_every_decoder(readers, path)
    for frame, expected in zip(sample.frames, stored, strict=True):
        np.testing.assert_array_equal(frame, ffmpeg_picture(expected))


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p", "yuv444p", "yuvj420p"])
def test_the_colours_of_every_pixel_format_are_those_of_ffmpeg(readers, tmp_path, pixel_format):
    path = tmp_path / "format.mp4"
    write_recipe(path, Recipe(times=SHORT, pixel_format=pixel_format))
    sample = same_by_every_decoder(readers, path)
    for frame, stored in zip(sample.frames, stored_frames(path), strict=True):
        np.testing.assert_array_equal(frame, ffmpeg_picture(stored))


SIZES = [((192, 112), (384, 224)), ((384, 224), (192, 112)), ((192, 112), (224, 384))]


def write_two_sizes(path, codec, first, second):
    """Ten frames of one size and ten of another in one stream."""
    options = {"libx264": {"preset": "veryfast"}, "libvpx": {"crf": "8", "b": "2M"}}.get(codec, {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = first
        stream.pix_fmt = "yuv420p"
        for begin, (width, height) in ((0, first), (10, second)):
            encoder = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            encoder.options, encoder.max_b_frames = options, 0
            packets = []
            for number in range(begin, begin + 10):
                image = counter_image(width, height, number)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                packets += encoder.encode(frame)
            for packet in packets + encoder.encode(None):
                packet.stream = stream
                container.mux(packet)


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mkv"), ("libvpx", ".webm")])
@pytest.mark.parametrize(("first", "second"), SIZES)
def test_frames_of_another_size_are_scaled_to_the_first_and_counted(
    readers, tmp_path, codec, suffix, first, second
):
    path = tmp_path / f"sizes{suffix}"
    write_two_sizes(path, codec, first, second)
    sample = same_by_every_decoder(readers, path)
    assert sample.frames.shape == (20, first[1], first[0], 3)
    assert sample.num_rescaled_frames == 10
    for frame, stored in zip(sample.frames, stored_frames(path), strict=True):
        np.testing.assert_array_equal(frame, ffmpeg_picture(stored, size=first))


def test_a_change_of_size_is_refused_by_name_where_the_settings_say_so(tmp_path):
    path = tmp_path / "sizes.mkv"
    write_two_sizes(path, "libx264", *SIZES[0])
    with (
        FrameReader(DecodeConfig(size_changes="refuse"), ALL) as reader,
        pytest.raises(DecodeError, match=r"from 192x112 to 384x224.*size_changes") as caught,
    ):
        reader.read(path)
    assert caught.value.kind == "mixed_sizes"


def test_a_clip_of_one_size_has_no_rescaled_frames(readers, tmp_path):
    path = tmp_path / "plain.mp4"
    write_recipe(path, Recipe(times=SHORT, matrix=UPRIGHT))
    assert readers["auto"].read(path).num_rescaled_frames == 0
