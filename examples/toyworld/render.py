"""Pixels of a scene: textured backgrounds, coloured shapes, letters, drifting light and noise."""

from functools import cache

import numpy as np
import numpy.typing as npt

from examples.toyworld.draw import BOX
from examples.toyworld.scene import NUM_FRAMES, SIDE, Flash, Mover, Scene

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

BORDER = 24
"""Pixels of background beyond each side of the picture, for pans and shakes."""

CELL = 12
"""Pixels between the random values that a background is interpolated from."""

NOISE = 2.5
"""Standard deviation of the sensor's noise, of 255."""

NOISE_LENGTH = 1 << 24

_GLYPHS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "X": "10001 01010 01010 00100 01010 01010 10001",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
}


def render(scene: Scene) -> npt.NDArray[np.uint8]:
    """The frames of a scene, ``(NUM_FRAMES, SIDE, SIDE, 3)`` uint8 RGB; the same seed, the same."""
    rng = np.random.default_rng((scene.seed, 1))
    views = scene.views
    backgrounds = _backgrounds(rng, len(views))
    frames = np.empty((NUM_FRAMES, SIDE, SIDE, 3), np.float32)
    for (start, stop), background in zip(views, backgrounds, strict=True):
        for t in range(start, stop):
            x, y = scene.camera.far[t] + BORDER
            frames[t] = background[y : y + SIDE, x : x + SIDE]
            for mover in scene.movers:
                _paint(frames[t], mover, t, scene.camera.near[t])
            for flash in scene.flashes:
                if flash.start <= t < flash.stop:
                    _flash(frames[t], flash)
    frames *= scene.gains[:, None, None, None].astype(np.float32)
    start = int(rng.integers(len(_noise()) - frames.size))
    frames += _noise()[start : start + frames.size].reshape(frames.shape)
    return np.clip(np.rint(frames, out=frames), 0, 255, out=frames).astype(np.uint8)


def _backgrounds(rng: np.random.Generator, count: int) -> list[Image]:
    """Textures of clearly different tones."""
    tones: list[npt.NDArray[np.float64]] = []
    while len(tones) < count:
        tone = rng.uniform(60, 185) + rng.uniform(-28, 28, 3)
        if all(np.abs(tone - other).sum() > 75 for other in tones):
            tones.append(tone)
    return [_texture(rng, tone) for tone in tones]


def _texture(rng: np.random.Generator, tone: npt.NDArray[np.float64]) -> Image:
    """Smooth clouds and stripes round a tone, ``(SIDE + 2 BORDER, SIDE + 2 BORDER, 3)``."""
    side = SIDE + 2 * BORDER
    knots = side // CELL + 2
    values = rng.normal(0, 22, (knots, knots, 1)) + rng.normal(0, 8, (knots, knots, 3))
    place = np.arange(side) / CELL
    low, share = place.astype(int), place % 1
    rows = values[low] * (1 - share)[:, None, None] + values[low + 1] * share[:, None, None]
    clouds = rows[:, low] * (1 - share)[:, None] + rows[:, low + 1] * share[:, None]
    slant, width = rng.integers(-1, 2), rng.integers(5, 11)
    y, x = np.mgrid[:side, :side]
    stripes = ((x + slant * y + rng.integers(width)) // width % 2) * rng.integers(22)
    texture: Image = np.clip(tone + clouds + stripes[..., None], 20, 225).astype(np.float32)
    return texture


def _paint(frame: Image, mover: Mover, t: int, offset: npt.NDArray[np.int64]) -> None:
    if not mover.start <= t < mover.stop:
        return
    mask = shape_mask(mover.shape, mover.radius)
    x, y = np.round(mover.centres[t]).astype(int) + offset - mover.radius
    top, left = max(0, -y), max(0, -x)
    picture = frame[max(0, y) : y + len(mask), max(0, x) : x + len(mask)]
    height, width = picture.shape[:2]
    picture[mask[top : top + height, left : left + width]] = mover.rgb_at(t)


def _flash(frame: Image, flash: Flash) -> None:
    x, y = flash.corner
    box = frame[y : y + BOX[1], x : x + BOX[0]]
    box[:] = 15
    box[2:-2, 2:-2][glyph_mask(flash.letter)] = 245


@cache
def _noise() -> npt.NDArray[np.float32]:
    """One long draw that every video takes its stretch of: to draw anew takes half the time."""
    draw = np.random.default_rng(0).standard_normal(NOISE_LENGTH, dtype=np.float32)
    scaled: npt.NDArray[np.float32] = draw * np.float32(NOISE)
    return scaled


@cache
def shape_mask(shape: str, radius: int) -> Mask:
    """``(2 radius + 1, 2 radius + 1)``, True inside the shape."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(float)
    distance = np.hypot(x, y)
    masks: dict[str, Mask] = {
        "circle": distance <= radius,
        "square": np.maximum(abs(x), abs(y)) <= 0.85 * radius,
        "triangle": (abs(x) <= (y + radius) / 2) & (y <= 0.8 * radius),
        "cross": np.minimum(abs(x), abs(y)) <= 0.33 * radius,
        "ring": (distance <= radius) & (distance >= 0.55 * radius),
        "diamond": abs(x) + abs(y) <= radius,
    }
    return masks[shape]


@cache
def glyph_mask(letter: str) -> Mask:
    """``(14, 10)``, True where the letter is bright: each dot of its 7x5 pattern is 2x2 pixels."""
    dots = np.array([[dot == "1" for dot in row] for row in _GLYPHS[letter].split()])
    return np.kron(dots, np.ones((2, 2), bool))
