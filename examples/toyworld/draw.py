"""A scene from a seed: what is there, when, and where it goes."""

import dataclasses

import numpy as np

from examples.toyworld.scene import (
    APART,
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
"""Centres stay this far from the border."""

IN_SIGHT = 0.5
"""Distance over the sum of the radii from which on most of the lower of two is in sight."""

MIN_SEEN = 4
LONG_SEEN = 2 * MIN_SEEN + GLOW_FRAMES
"""Frames that a thing is there at least which changes its colour."""

MIN_VIEW = 6
FLASH_FRAMES = 3
BOX = (14, 18)
"""Width and height of a letter's box."""

PAN = (0.8, 1.6)
PARALLAX = 0.4
"""What is near moves this share of the background's way more."""

SHAKE = 1
MOST_TRIES = 60


def draw_scene(seed: int, level: str | None = None) -> Scene:
    """Draw one scene; equal seeds and levels give equal scenes.

    Args:
        seed: a whole number, not negative.
        level: one of ``LEVELS``; None draws it too.
    """
    rng = np.random.default_rng(seed)
    drawn = str(rng.choice(LEVELS))
    level = level or drawn
    cuts = _draw_cuts(rng) if level == "cuts" else ()
    return Scene(
        seed=seed,
        level=level,
        cuts=cuts,
        movers=_draw_movers(rng, level, cuts),
        flashes=_draw_flashes(rng),
        camera=_draw_camera(rng, level),
        gains=1 + 0.06 * np.sin(rng.uniform(0, 6.3) + np.arange(NUM_FRAMES) * rng.uniform(0, 0.4)),
    )


def _draw_cuts(rng: np.random.Generator) -> tuple[int, ...]:
    """One or, as often, two cuts at any frames, odd ones too."""
    count = int(rng.integers(1, 3))
    while True:
        places = np.arange(MIN_VIEW, NUM_FRAMES - MIN_VIEW + 1)
        cuts = np.sort(rng.choice(places, count, replace=False))
        if (np.diff(cuts) >= MIN_VIEW).all():
            return tuple(int(cut) for cut in cuts)


def _draw_movers(rng: np.random.Generator, level: str, cuts: tuple[int, ...]) -> tuple[Mover, ...]:
    """One to three; of those that meet, all keep apart or, as often, some touch."""
    count = int(rng.integers(1, 4))
    shapes = [str(shape) for shape in rng.permutation(SHAPES)]
    colours = [str(colour) for colour in rng.permutation(list(COLOURS))]
    wants_touch = bool(rng.random() < 0.5)
    movers: tuple[Mover, ...] = ()
    for _ in range(MOST_TRIES):
        movers = tuple(
            _draw_mover(rng, level, cuts, shapes[i], colours[i], is_first=i == 0)
            for i in range(count)
        )
        met = [
            ratio
            for i, one in enumerate(movers)
            for other in movers[:i]
            if np.isfinite(ratio := nearest(one, other))
        ]
        is_clear = not any(TOUCHING < ratio < APART for ratio in met) and all(
            _is_seen(mover, movers[i + 1 :]) for i, mover in enumerate(movers)
        )
        if is_clear and (not met or (min(met) <= TOUCHING) == wants_touch):
            return _with_change(rng, movers, colours[count])
    return _with_change(rng, movers[:1], colours[count])


def _is_seen(mover: Mover, above: tuple[Mover, ...]) -> bool:
    """Whether at least half of it is in sight for a while, whatever is painted over it."""
    in_sight = ~np.isnan(mover.centres[:, 0])
    for other in above:
        apart = np.linalg.norm(mover.centres - other.centres, axis=1)
        in_sight &= ~(apart < IN_SIGHT * (mover.radius + other.radius))
    return int(in_sight.sum()) >= MIN_SEEN


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
    rng: np.random.Generator, movers: tuple[Mover, ...], colour: str
) -> tuple[Mover, ...]:
    """In half of the scenes one mover that is seen long enough takes another colour."""
    long = [i for i, mover in enumerate(movers) if mover.stop - mover.start >= LONG_SEEN]
    if not long or rng.random() < 0.5:
        return movers
    chosen = int(rng.choice(long))
    mover = movers[chosen]
    at = int(rng.integers(mover.start + MIN_SEEN, mover.stop - MIN_SEEN - GLOW_FRAMES + 1))
    changed = dataclasses.replace(mover, changes_at=at, then=colour)
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
