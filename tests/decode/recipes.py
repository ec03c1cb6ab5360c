"""Clips of every kind, made from a recipe: each frame carries its number burned in.

The number is drawn on the upright picture; the stored frame is that picture turned the other way
round, so that a reader who turns it as the display matrix says finds the number where it was.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
import pytest
from av.filter import Graph

from pipeline.decode.clips import counter_image

WIDTH, HEIGHT = 192, 112

UPRIGHT = (1, 0, 0, 1)

MATRICES = {
    UPRIGHT: (),
    (0, 1, -1, 0): (("transpose", "clock"),),
    (-1, 0, 0, -1): (("hflip", ""), ("vflip", "")),
    (0, -1, 1, 0): (("transpose", "cclock"),),
    (-1, 0, 0, 1): (("hflip", ""),),
    (1, 0, 0, -1): (("vflip", ""),),
    (0, 1, 1, 0): (("transpose", "cclock_flip"),),
    (0, -1, -1, 0): (("transpose", "clock_flip"),),
}
"""All ways to turn and mirror, ``(a, b, c, d)`` of the display matrix, and ffmpeg's filters."""

SUFFIXES = {
    "libx264": (".mp4", ".mov", ".mkv", ".ts", ".flv"),
    "libx265": (".mp4", ".mkv", ".ts"),
    "mpeg4": (".mp4", ".mov", ".mkv", ".avi", ".ts"),
    "mpeg2video": (".ts", ".mkv", ".mpg"),
    "libvpx": (".webm", ".mkv"),
    "libvpx-vp9": (".webm", ".mp4"),
    "mjpeg": (".avi", ".mov", ".mkv"),
}

REORDERING = ("libx264", "libx265", "mpeg4", "mpeg2video")
TURNABLE = (".mp4", ".mov", ".mkv")
FIXED_RATE = (".avi", ".mpg")

_OPTIONS = {
    "libx264": {"preset": "veryfast", "sc_threshold": "0"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "8", "b": "2M"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"},
}


@dataclass(frozen=True)
class Recipe:
    """What a clip is made of.

    ``times`` are the frames' times in units of 1 / ``rate`` s. ``streams`` says what stands beside
    the video: "alone", "after sound", "second and default" or "beside a smaller one". Without
    ``has_pts`` every frame bears the time at which it is decoded. With ``is_index_first`` an MP4
    begins with its table of frames.
    """

    codec: str = "libx264"
    suffix: str = ".mp4"
    times: tuple[int, ...] = tuple(range(40))
    rate: int = 25
    gop: int = 12
    bframes: int = 0
    matrix: tuple[int, int, int, int] = UPRIGHT
    streams: str = "alone"
    has_pts: bool = True
    is_index_first: bool = False
    pixel_format: str = ""
    start_seconds: float = 0.0
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def fps(self):
        span = (self.times[-1] - self.times[0]) / self.rate
        return (len(self.times) - 1) / span


def mostly_slow(values, fast):
    """Parameters of a test of which only ``fast`` belong to the fast suite."""
    return [
        value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values
    ]


def random_recipe(seed):
    """A recipe that a container and a codec of today can hold."""
    draw = random.Random(seed)
    codec = draw.choice(list(SUFFIXES))
    suffix = draw.choice(SUFFIXES[codec])
    bframes = draw.choice((0, 1, 2, 3)) if codec in REORDERING else 0
    may_lack_pts = bframes and suffix in (".mp4", ".mkv") and codec != "mpeg2video"
    num_frames = draw.randrange(20, 60)
    steps = [1] * num_frames
    if suffix not in FIXED_RATE:
        match draw.choice(("even", "even", "uneven", "pause")):
            case "uneven":
                steps = [draw.choice((1, 1, 2, 3)) for _ in steps]
            case "pause":
                steps[draw.choice((0, num_frames // 2, num_frames - 2))] = draw.choice((2, 5, 40))
    options = {}
    if codec == "libx264" and bframes and draw.random() < 0.3:
        options = {"x264-params": "open-gop=1"}
    return Recipe(
        codec=codec,
        suffix=suffix,
        times=tuple(np.cumsum([0, *steps[:-1]]).tolist()),
        rate=draw.choice((10, 25, 30)) if codec != "mpeg2video" else 25,
        gop=draw.choice((1, 5, 12, 250)),
        bframes=bframes,
        matrix=draw.choice(list(MATRICES)) if suffix in TURNABLE else UPRIGHT,
        streams=draw.choice(("alone", "alone", "after sound", "second and default"))
        if suffix in (".mp4", ".mkv", ".mov")
        else "alone",
        has_pts=not (may_lack_pts and draw.random() < 0.3),
        start_seconds=draw.choice((0.0, 0.0, 7.0)) if suffix == ".ts" else 0.0,
        options=options,
    )


def write_recipe(path, recipe):
    """Write the clip of ``recipe`` at ``path``."""
    layout = {"movflags": "faststart"} if recipe.is_index_first else {}
    with av.open(str(path), "w", options=layout) as container:
        sound = container.add_stream("aac", rate=8000) if recipe.streams == "after sound" else None
        other = None
        if recipe.streams == "second and default":
            other = _add_video(container, recipe, WIDTH, HEIGHT, "libx264")
            other.disposition = 0
        elif recipe.streams == "beside a smaller one":
            other = _add_video(container, recipe, WIDTH // 2, HEIGHT // 2, "libx264")
        stored = [
            _stored(counter_image(WIDTH, HEIGHT, n), recipe) for n in range(len(recipe.times))
        ]
        height, width = stored[0].shape[:2]
        stream = _add_video(container, recipe, width, height, recipe.codec)
        if other is not None:
            stream.disposition = av.stream.Disposition.default
        a, b, c, d = (side << 16 for side in recipe.matrix)
        if recipe.matrix != UPRIGHT:
            stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
        unit = Fraction(1, recipe.rate)
        start = round(recipe.start_seconds * recipe.rate)
        packets = []
        for time, image in zip(recipe.times, stored, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = start + time, unit
            packets += stream.encode(frame)
            if other is not None:
                grey = np.full((other.height, other.width, 3), 127, np.uint8)
                beside = av.VideoFrame.from_ndarray(grey, format="rgb24")
                beside.pts, beside.time_base = start + time, unit
                container.mux(other.encode(beside))
        packets += stream.encode(None)
        if sound is not None:
            _mux_silence(container, sound)
        if not recipe.has_pts:
            _forget_pts(packets)
        container.mux(packets)
        if other is not None:
            container.mux(other.encode(None))


def ffmpeg_picture(frame, filters=(), size=None):
    """``frame`` as the ffmpeg command writes it with ``-pix_fmt rgb24``."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    scale = [("scale", f"{size[0]}:{size[1]}:flags=bicubic")] if size else []
    nodes = [graph.add(*named) for named in (*filters, *scale, ("format", "rgb24"))]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


def _add_video(container, recipe, width, height, codec):
    options = {**_OPTIONS.get(codec, {}), **recipe.options} if codec == recipe.codec else {}
    stream = container.add_stream(codec, rate=recipe.rate, options=options)
    stream.width, stream.height = width, height
    stream.pix_fmt = recipe.pixel_format or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
    stream.codec_context.gop_size = recipe.gop
    stream.codec_context.max_b_frames = recipe.bframes
    stream.codec_context.thread_count = 1
    if codec in ("mpeg4", "mpeg2video", "mjpeg"):
        stream.codec_context.qmin = stream.codec_context.qmax = 3
    return stream


def _stored(upright, recipe):
    """The picture that the display matrix turns into ``upright``."""
    a, b, c, d = recipe.matrix
    # An inverse of a turn or a mirroring is its transposed matrix.
    inverse = (a, c, b, d)
    frame = av.VideoFrame.from_ndarray(upright, format="rgb24")
    frame.time_base = Fraction(1, 25)
    return ffmpeg_picture(frame, MATRICES.get(inverse, ()))


def _forget_pts(packets):
    """Give each packet the time at which it is decoded; the first time is 0."""
    first = packets[0].dts
    for packet in packets:
        packet.pts = packet.dts = packet.dts - first


def _mux_silence(container, stream):
    silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp")
    silence.sample_rate, silence.pts = 8000, 0
    container.mux(stream.encode(silence))
    container.mux(stream.encode(None))
