"""What happens in one toy video: nothing here is a pixel.

Lengths are in pixels, times in frames; ``stop`` is the frame after the last.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

SIDE = 96
NUM_FRAMES = 24
FRAMES_PER_SECOND = 4.0

FIRST_SEEDS = {"test": 0, "demo": 500_000, "validation": 1_000_000, "train": 2_000_000}
"""Seeds of a part begin here; training is the last, and has all that follow."""

LEVELS = ("still", "low", "high", "cuts")
COLOURS = {
    "red": (225, 35, 35),
    "green": (35, 190, 50),
    "blue": (45, 75, 235),
    "yellow": (240, 225, 40),
    "purple": (160, 50, 200),
    "orange": (250, 140, 25),
    "cyan": (40, 215, 225),
    "pink": (255, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
GLOW, GLOW_FRAMES = (255, 255, 255), 3
"""What a thing looks like that is about to change its colour, and for how long."""

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
LETTERS = ("A", "C", "E", "H", "L", "T", "X", "Z")

BOX = (14, 18)
"""Width and height of a letter's box in pixels."""

TOUCHING, APART = 0.75, 1.3
"""Distance over the sum of the radii: two that meet come as near as the first, or stay as far as
the second; nothing lies between."""


@dataclass(frozen=True, slots=True, eq=False)
class Mover:
    """A coloured shape that moves straight on while it is there.

    ``centres`` is ``(NUM_FRAMES, 2)`` x, y; NaN while it is away. At ``changes_at`` it glows white
    for ``GLOW_FRAMES`` and then has the colour ``then``; both None: it keeps its own.
    """

    shape: str
    colour: str
    direction: str
    radius: int
    start: int
    stop: int
    centres: npt.NDArray[np.float64]
    changes_at: int | None = None
    then: str | None = None

    def rgb_at(self, frame: int) -> tuple[int, int, int]:
        if self.changes_at is None or self.then is None or frame < self.changes_at:
            return COLOURS[self.colour]
        return GLOW if frame < self.changes_at + GLOW_FRAMES else COLOURS[self.then]


@dataclass(frozen=True, slots=True)
class Flash:
    """A letter in a dark box, for a moment; ``corner`` is its top left, x and y."""

    letter: str
    start: int
    stop: int
    corner: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """How the picture moves: ``(NUM_FRAMES, 2)`` whole offsets x, y of what is far and near."""

    far: npt.NDArray[np.int64]
    near: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One toy video.

    Attributes:
        seed: it was drawn from this.
        level: one of ``LEVELS``.
        cuts: frames that begin another view, ascending.
        movers: no two share a shape or a colour, the later colours included.
        flashes: letters in the order of time, all different, never two at once.
        camera: shake and pan.
        gains: ``(NUM_FRAMES,)`` brightness, drifting round 1.
        sight: ``(movers, NUM_FRAMES)``, the share of each that nothing lies over, 0 while away.
    """

    seed: int
    level: str
    cuts: tuple[int, ...]
    movers: tuple[Mover, ...]
    flashes: tuple[Flash, ...]
    camera: Camera
    gains: npt.NDArray[np.float64]
    sight: npt.NDArray[np.float64]

    @property
    def views(self) -> list[tuple[int, int]]:
        """Start and stop of each view."""
        return list(pairwise([0, *self.cuts, NUM_FRAMES]))

    def meetings(self) -> Iterator[tuple[Mover, Mover, bool]]:
        """Pairs that are seen together, and whether they touch."""
        for one, other in combinations(self.movers, 2):
            distance = nearest(one, other)
            if np.isfinite(distance):
                yield one, other, distance <= TOUCHING


def nearest(one: Mover, other: Mover) -> float:
    """Smallest distance of two movers over the sum of their radii, inf if never seen together."""
    together = ~np.isnan(one.centres[:, 0]) & ~np.isnan(other.centres[:, 0])
    if not together.any():
        return np.inf
    apart = np.linalg.norm(one.centres[together] - other.centres[together], axis=1)
    return float(apart.min()) / (one.radius + other.radius)
