"""Small clips for tests and demonstrations: frames that carry their number, and a scene.

The number of a frame is burned into its first rows as 16 squares from left to right; square k is
white when bit k is set. Whoever decodes such a clip can prove which frame it got.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

NUM_COUNTER_BITS = 16

_WHITE, _BLACK, _MIDDLE = 235, 16, 127


def counter_side(width: int) -> int:
    """Side in pixels of one square of the burned-in number."""
    return max(2, min(16, width // 18))


def read_counter(frame: Image) -> int:
    """The number burned into ``frame``, ``(height, width, 3)``."""
    side = counter_side(frame.shape[1])
    margin = side // 4
    number = 0
    for bit in range(NUM_COUNTER_BITS):
        square = frame[margin : side - margin, bit * side + margin : (bit + 1) * side - margin]
        number |= int(square.mean() > _MIDDLE) << bit
    return number


def write_counter_clip(
    path: str | Path,
    *,
    num_frames: int,
    width: int = 320,
    height: int = 180,
    fps: int = 30,
    codec: str = "libx264",
    gop: int = 30,
    bframes: int = 0,
    options: Mapping[str, str] | None = None,
) -> None:
    """Write a clip whose frame i carries the number i; the file name decides the container.

    Args:
        path: where to write.
        num_frames: at most 65536.
        width: pixels, at least 32.
        height: pixels.
        fps: frames per second.
        codec: FFmpeg encoder; mpeg4 takes the place of a libx264 that is not there.
        gop: frames from one keyframe to the next.
        bframes: B-frames in a row.
        options: further encoder options.
    """
    frames = (counter_image(width, height, number) for number in range(num_frames))
    write_clip(path, frames, fps=fps, codec=codec, gop=gop, bframes=bframes, options=options or {})


def write_scene_clip(
    path: str | Path,
    *,
    seed: int,
    seconds: float,
    width: int = 320,
    height: int = 192,
    fps: int = 12,
    has_cut: bool = True,
) -> None:
    """Write a short scene: a textured still background, a disc and a box moving across it.

    The same arguments give the same frames. With ``has_cut`` the background changes halfway.
    """
    generator = np.random.default_rng(seed)
    num_frames = max(2, round(seconds * fps))
    backgrounds = [_texture(generator, height, width) for _ in range(1 + has_cut)]
    colours = generator.integers(60, 256, size=(2, 3))
    phase = generator.uniform(0, 2 * np.pi)
    frames = (
        _scene_image(
            backgrounds[number * len(backgrounds) // num_frames],
            colours,
            time=number / num_frames,
            phase=phase,
        )
        for number in range(num_frames)
    )
    write_clip(
        path, frames, fps=fps, codec="libx264", gop=2 * fps, bframes=2, options={"crf": "20"}
    )


def counter_image(width: int, height: int, number: int) -> Image:
    """A colourful picture with ``number`` burned in, ``(height, width, 3)``."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = (columns + 3 * number) % 256
    green = (rows * 2 + number) % 256
    blue = (columns // 16 + rows // 16 + number // 8) % 2 * 120 + 60
    image = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    side = counter_side(width)
    for bit in range(NUM_COUNTER_BITS):
        shade = _WHITE if number >> bit & 1 else _BLACK
        image[:side, bit * side : (bit + 1) * side] = shade
    return image


def _texture(generator: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float64]:
    """Smooth coloured hills with a little grain, ``(height, width, 3)`` in 0..255."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    hills = np.zeros((height, width, 3))
    for _ in range(6):
        frequency = generator.uniform(2, 14, size=2)
        wave = np.sin(2 * np.pi * (frequency[0] * rows + frequency[1] * columns))
        hills += wave[..., None] * generator.uniform(4, 18, size=3)
    grain = generator.normal(0, 3, size=(height, width, 1))
    return np.asarray(generator.uniform(70, 150, size=3) + hills + grain)


def _scene_image(
    background: npt.NDArray[np.float64],
    colours: npt.NDArray[np.int64],
    *,
    time: float,
    phase: float,
) -> Image:
    height, width, _ = background.shape
    rows, columns = np.mgrid[0:height, 0:width]
    image = background.copy()
    radius = height / 7
    centre = (height * (0.5 + 0.25 * np.sin(2 * np.pi * time + phase)), width * (0.1 + 0.8 * time))
    image[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2] = colours[0]
    left, top = width * (0.75 - 0.5 * time), height * 0.72
    image[(abs(columns - left) < width / 14) & (abs(rows - top) < height / 12)] = colours[1]
    return image.clip(0, 255).astype(np.uint8)


def write_clip(
    path: str | Path,
    frames: Iterable[Image],
    *,
    fps: int,
    codec: str,
    gop: int,
    bframes: int,
    options: Mapping[str, str],
) -> None:
    """Encode frames of one size as a video; MPEG-4 where the codec is not there.

    Args:
        path: of the file; its ending chooses the container.
        frames: ``(H, W, 3)`` uint8 RGB each.
        fps: frames per second.
        codec: as FFmpeg names it.
        gop: frames from one key frame to the next.
        bframes: consecutive B frames at most.
        options: of the encoder.
    """
    import av

    if codec not in av.codecs_available:
        codec, options = "mpeg4", {"qscale": "4"}
    if codec == "libx264":
        options = {"preset": "veryfast", "sc_threshold": "0"} | dict(options)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=dict(options))
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = bframes
        stream.codec_context.thread_count = 1
        for number, image in enumerate(frames):
            if not number:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
