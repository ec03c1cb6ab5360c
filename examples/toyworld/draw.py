"""A scene from a seed: what is there, when, and where it goes."""

import dataclasses
from itertools import combinations

import numpy as np

from examples.toyworld.masks import Shares, largest_overlap, shares_in_sight
from examples.toyworld.scene import (
    APART,
    BOX,
    COLOURS,
    DIRECTIONS,
    GLOW_FRAMES,
    LETTERS,
    LEVELS,
    NUM_FRAMES,
    SHAPES,
    SIDE,
    TOUCHING,
    Camera,
    Flash,
    Mover,
    Scene,
    nearest,
)

SPEEDS = {"still": (0.0, 0.0), "low": (1.0, 1.6), "high": (2.0, 2.8), "cuts": (1.0, 2.2)}
"""Pixels per frame of what moves."""

RADII = (10, 12)
MARGIN = 14.0
"""Centres stay this far from the border, as long as the camera rests."""

IN_SIGHT = 0.5
"""Share of a thing that must be seen for it to be asked about."""

MIN_OVERLAP = 16
"""Pixels that two cover both in some frame if they touch."""

MIN_SEEN = 4
MIN_VIEW = 6
FLASH_FRAMES = 3
PAN = (0.8, 1.6)
PARALLAX = 0.4
"""What is near moves this share of the background's way more."""

SHAKE = 1
MOST_TRIES = 60


def draw_scene(seed: int) -> Scene:
    """Draw one scene; equal seeds give equal scenes, and levels take turns.

    Args:
        seed: a whole number, not negative.
    """
    rng = np.random.default_rng(seed)
    level = LEVELS[seed % len(LEVELS)]
    cuts = _draw_cuts(rng) if level == "cuts" else ()
    camera = _draw_camera(rng, level)
    flashes = _draw_flashes(rng)
    movers, sight = _draw_movers(rng, level, cuts, flashes, camera)
    return Scene(
        seed=seed,
        level=level,
        cuts=cuts,
        movers=movers,
        flashes=flashes,
        camera=camera,
        gains=1 + 0.06 * np.sin(rng.uniform(0, 6.3) + np.arange(NUM_FRAMES) * rng.uniform(0, 0.4)),
        sight=sight,
    )


def _draw_cuts(rng: np.random.Generator) -> tuple[int, ...]:
    """One or, as often, two cuts at any frames, odd ones too."""
    count = int(rng.integers(1, 3))
    while True:
        places = np.arange(MIN_VIEW, NUM_FRAMES - MIN_VIEW + 1)
        cuts = np.sort(rng.choice(places, count, replace=False))
        if (np.diff(cuts) >= MIN_VIEW).all():
            return tuple(int(cut) for cut in cuts)


def _draw_movers(
    rng: np.random.Generator,
    level: str,
    cuts: tuple[int, ...],
    flashes: tuple[Flash, ...],
    camera: Camera,
) -> tuple[tuple[Mover, ...], Shares]:
    """One to three, and how much of them is seen.

    Of those that meet, all keep apart or, as often, some touch.
    """
    count = int(rng.integers(1, 4))
    shapes = [str(shape) for shape in rng.permutation(SHAPES)]
    colours = [str(colour) for colour in rng.permutation(list(COLOURS))]
    wants_touch = bool(rng.random() < 0.5)
    while True:
        for _ in range(MOST_TRIES):
            movers = tuple(
                _draw_mover(rng, level, cuts, shapes[i], colours[i], is_first=i == 0)
                for i in range(count)
            )
            if not _is_clear(movers, camera, wants_touch=wants_touch):
                continue
            sight = shares_in_sight(movers, flashes, camera)
            if ((sight >= IN_SIGHT).sum(axis=1) >= MIN_SEEN).all():
                return _with_change(rng, movers, sight, colours[count]), sight
        count = 1


def _is_clear(movers: tuple[Mover, ...], camera: Camera, *, wants_touch: bool) -> bool:
    """Whether all that meet touch clearly or keep apart clearly, and some touch where wanted."""
    touch = False
    for one, other in combinations(movers, 2):
        ratio = nearest(one, other)
        if TOUCHING < ratio < APART:
            return False
        if ratio <= TOUCHING:
            touch = True
            if largest_overlap(one, other, camera) < MIN_OVERLAP:
                return False
    any_meet = any(np.isfinite(nearest(*pair)) for pair in combinations(movers, 2))
    return touch == wants_touch or not any_meet


def _draw_mover(
    rng: np.random.Generator,
    level: str,
    cuts: tuple[int, ...],
    shape: str,
    colour: str,
    *,
    is_first: bool,
) -> Mover:
    """It is there from the beginning of its view to the end, or for a part of that."""
    bounds = [0, *cuts, NUM_FRAMES]
    view = int(rng.integers(len(bounds) - 1))
    start, stop = bounds[view], bounds[view + 1]
    if not is_first and stop - start > 2 * MIN_SEEN:
        if rng.random() < 0.5:
            start = int(rng.integers(start, stop - MIN_SEEN - 1))
        if rng.random() < 0.4:
            stop = int(rng.integers(start + MIN_SEEN, stop))
    is_still = level == "still" or rng.random() < 0.2
    direction = "still" if is_still else str(rng.choice(list(DIRECTIONS)))
    step = np.array(DIRECTIONS[direction]) * rng.uniform(*SPEEDS[level])
    way = step * (stop - start - 1)
    least, most = MARGIN + np.maximum(0, -way), SIDE - MARGIN - np.maximum(0, way)
    centres = np.full((NUM_FRAMES, 2), np.nan)
    centres[start:stop] = rng.uniform(least, np.maximum(most, least)) + step * np.arange(
        stop - start
    ).reshape(-1, 1)
    radius = int(rng.integers(RADII[0], RADII[1] + 1))
    return Mover(shape, colour, direction, radius, start, stop, centres)


def _with_change(
    rng: np.random.Generator, movers: tuple[Mover, ...], sight: Shares, colour: str
) -> tuple[Mover, ...]:
    """In half of the scenes one mover that is seen to glow takes another colour then."""
    if rng.random() < 0.5:
        return movers
    moments = [
        (number, at)
        for number, mover in enumerate(movers)
        for at in range(mover.start + MIN_SEEN, mover.stop - MIN_SEEN - GLOW_FRAMES + 1)
        if (sight[number, at : at + GLOW_FRAMES] >= IN_SIGHT).all()
    ]
    if not moments:
        return movers
    chosen, at = moments[int(rng.integers(len(moments)))]
    changed = dataclasses.replace(movers[chosen], changes_at=at, then=colour)
    return (*movers[:chosen], changed, *movers[chosen + 1 :])


def _draw_flashes(rng: np.random.Generator) -> tuple[Flash, ...]:
    """Up to three letters; most scenes have two."""
    count = int(rng.choice(4, p=(0.15, 0.2, 0.4, 0.25)))
    letters = rng.permutation(LETTERS)[:count]
    while True:
        starts = np.sort(rng.choice(NUM_FRAMES - FLASH_FRAMES, count, replace=False))
        if (np.diff(starts) > FLASH_FRAMES).all():
            break
    return tuple(
        Flash(
            letter=str(letter),
            start=int(start),
            stop=int(start) + FLASH_FRAMES,
            corner=(int(rng.integers(1, SIDE - BOX[0])), int(rng.integers(1, SIDE - BOX[1]))),
        )
        for letter, start in zip(letters, starts, strict=True)
    )


def _draw_camera(rng: np.random.Generator, level: str) -> Camera:
    """A pan with parallax or a shake at the high level, rest otherwise."""
    far = np.zeros((NUM_FRAMES, 2), np.int64)
    if level != "high":
        return Camera(far, far)
    if rng.random() < 0.5:
        shake = rng.integers(-SHAKE, SHAKE + 1, (NUM_FRAMES, 2))
        return Camera(shake, shake)
    way = rng.uniform(*PAN) * rng.choice([-1, 1]) * (np.arange(NUM_FRAMES) - NUM_FRAMES / 2)
    near = far.copy()
    far[:, 0], near[:, 0] = np.round(way), np.round(way * PARALLAX)
    return Camera(far, near)
