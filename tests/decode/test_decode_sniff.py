"""What is refused before FFmpeg may look at it."""

import os

import pytest

from pipeline.decode import FrameReader
from pipeline.decode.clips import write_counter_clip
from schemas.config import DecodeConfig, SamplingConfig
from schemas.errors import DecodeError


@pytest.fixture(scope="module")
def reader():
    with FrameReader(DecodeConfig(), SamplingConfig()) as reader:
        yield reader


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "secret.ts"
    write_counter_clip(path, num_frames=8)
    return path


def refused(reader, path):
    with pytest.raises(DecodeError) as caught:
        reader.read(path)
    assert str(path) in str(caught.value)
    return caught.value.kind


@pytest.mark.parametrize(
    "template",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        "\ufeff#EXTM3U\n{}\n",
        "ffconcat version 1.0\nfile '{}'\n",
        "\n\nffconcat version 1.0\nfile '{}'\n",
        "<?xml version='1.0'?><MPD><BaseURL>{}</BaseURL></MPD>",
        "<html><body>404: {}</body></html>",
    ],
)
def test_a_script_that_names_another_file_is_refused(reader, clip, tmp_path, template):
    path = tmp_path / "innocent.mp4"
    path.write_text(template.format(clip), encoding="utf-8")
    assert refused(reader, path) == "not_a_video"


@pytest.mark.parametrize(
    "head",
    [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"RIFF\x00\x01\x00\x00WEBPVP8 ",
        b"BM\x00\x01\x00\x00",
        b"\x00\x00\x00\x20ftypheic",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"RIFF\x00\x01\x00\x00WAVEfmt ",
    ],
)
def test_images_documents_and_archives_are_no_videos(reader, tmp_path, head):
    path = tmp_path / "picture.mp4"
    path.write_bytes(head + bytes(500))
    assert refused(reader, path) == "not_a_video"


def test_unknown_bytes_are_unreadable(reader, tmp_path):
    path = tmp_path / "noise.mp4"
    path.write_bytes(bytes(range(255, 0, -1)) * 20)
    assert refused(reader, path) == "unreadable"


def test_a_missing_file_is_missing(reader, tmp_path):
    assert refused(reader, tmp_path / "gone.mp4") == "missing"


def test_a_folder_is_unreadable(reader, tmp_path):
    assert refused(reader, tmp_path) == "unreadable"


def test_a_pipe_that_nobody_writes_to_does_not_block(reader, tmp_path):
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    assert refused(reader, path) == "unreadable"


def test_an_unknown_codec_is_unsupported(reader, tmp_path):
    path = tmp_path / "alien.mp4"
    write_counter_clip(path, num_frames=8)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"mp4v", b"zzzz"))
    assert refused(reader, path) == "unsupported_codec"


def test_a_name_that_is_not_utf8_is_read_all_the_same(reader, clip, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.ts")
    os.link(clip, path)
    assert reader.read(path).probe.num_frames == 8


def test_a_frame_size_above_the_limit_is_refused_before_decoding(tmp_path):
    path = tmp_path / "wide.mp4"
    write_counter_clip(path, num_frames=4, width=640, height=360)
    with FrameReader(DecodeConfig(max_frame_pixels=320 * 180), SamplingConfig()) as reader:
        assert refused(reader, path) == "too_large"
