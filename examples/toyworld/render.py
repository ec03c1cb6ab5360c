"""Pixels of a scene: textured backgrounds, coloured shapes, letters, drifting light and noise."""

from functools import cache

import numpy as np
import numpy.typing as npt

from examples.toyworld.masks import glyph_mask, mover_pixels
from examples.toyworld.scene import BOX, NUM_FRAMES, SIDE, Camera, Flash, Mover, Scene

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

BORDER = 24
"""Pixels of background beyond each side of the picture, for pans and shakes."""

CELL = 12
"""Pixels between the random values that a background is interpolated from."""

TONES_APART = 120
"""Over the three colours, of the backgrounds of two views."""

NOISE = 2.5
"""Standard deviation of the sensor's noise, of 255."""

NOISE_LENGTH = 1 << 24


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
                _paint(frames[t], mover, t, scene.camera)
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
        if all(np.abs(tone - other).sum() > TONES_APART for other in tones):
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


def _paint(frame: Image, mover: Mover, t: int, camera: Camera) -> None:
    if (found := mover_pixels(mover, t, camera)) is not None:
        place, mask = found
        frame[place][mask] = mover.rgb_at(t)


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
