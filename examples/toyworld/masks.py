"""Which pixels a thing covers, and which of them are seen."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from examples.toyworld.scene import BOX, NUM_FRAMES, SIDE, Camera, Flash, Mover

Mask = npt.NDArray[np.bool_]
Shares = npt.NDArray[np.float64]

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


def mover_pixels(
    mover: Mover, frame: int, camera: Camera
) -> tuple[tuple[slice, slice], Mask] | None:
    """The rows and columns of the picture round a mover, and which of them it covers.

    None while it is away.
    """
    if not mover.start <= frame < mover.stop:
        return None
    mask = shape_mask(mover.shape, mover.radius)
    x, y = np.round(mover.centres[frame]).astype(int) + camera.near[frame] - mover.radius
    top, left = max(0, -y), max(0, -x)
    inside = mask[top : SIDE - y, left : SIDE - x]
    rows = slice(y + top, y + top + inside.shape[0])
    return (rows, slice(x + left, x + left + inside.shape[1])), inside


def shares_in_sight(movers: Sequence[Mover], flashes: Sequence[Flash], camera: Camera) -> Shares:
    """How much of each mover nothing lies over, ``(movers, NUM_FRAMES)``; 0 while it is away."""
    shares = np.zeros((len(movers), NUM_FRAMES))
    for frame in range(NUM_FRAMES):
        shown = np.full((SIDE, SIDE), -1)
        for number, mover in enumerate(movers):
            if (found := mover_pixels(mover, frame, camera)) is not None:
                shown[found[0]][found[1]] = number
        for flash in flashes:
            if flash.start <= frame < flash.stop:
                x, y = flash.corner
                shown[y : y + BOX[1], x : x + BOX[0]] = -1
        for number, mover in enumerate(movers):
            whole = shape_mask(mover.shape, mover.radius).sum()
            shares[number, frame] = (shown == number).sum() / whole
    return shares


def largest_overlap(one: Mover, other: Mover, camera: Camera) -> int:
    """The most pixels that both cover in one frame."""
    most = 0
    for frame in range(max(one.start, other.start), min(one.stop, other.stop)):
        count = np.zeros((SIDE, SIDE), np.int8)
        for mover in (one, other):
            if (found := mover_pixels(mover, frame, camera)) is not None:
                count[found[0]] += found[1]
        most = max(most, int((count == 2).sum()))
    return most
