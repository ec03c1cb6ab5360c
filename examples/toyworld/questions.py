"""Questions about a scene with answers of one word.

A thing is named by its shape or, as often, by its colour; a mover that changes colour is named by
its shape only. Nothing is asked whose answer could be doubted: not where a still thing moves that
the camera pans past, nor on which side one is that is in the middle
or hidden.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from examples.toyworld.draw import IN_SIGHT
from examples.toyworld.scene import LETTERS, NUM_FRAMES, SIDE, Mover, Scene

MIDLINE = 6.0
"""Pixels from the middle within which nobody asks on which side something is."""

SMALL_PAN = 2
"""Pixels that a camera's shake may move what is near."""

CLEARLY = 4
"""Frames between two events of which one is called the first."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        kind: one of ``KINDS``.
        text: its words, a space between any two.
        answer: one word.
        hints: for words of ``text`` that name a thing, what could be said at once on hearing it:
            the answer, where the words before tell what is asked. For training only.
    """

    kind: str
    text: str
    answer: str
    hints: tuple[tuple[str, str], ...] = ()


def ask(scene: Scene) -> list[Question]:
    """All questions that can be asked about a scene, in the order of ``KINDS``."""
    rng = np.random.default_rng((scene.seed, 2))
    return [
        Question(kind, text, answer, tuple(hints))
        for kind, asked in _ASKERS.items()
        for text, answer, *hints in asked(scene, rng)
    ]


def direction_of(scene: Scene, mover: Mover) -> str | None:
    """Where a thing moves; None where it is still and the camera pans past it."""
    is_panned = np.ptp(scene.camera.near[:, 0]) > SMALL_PAN
    return None if is_panned and mover.direction == "still" else mover.direction


def side_of(x: float, y: float) -> str | None:
    """The quarter of the picture that a place lies in; None where it is near the middle."""
    x, y = x - SIDE / 2, y - SIDE / 2
    if min(abs(x), abs(y)) < MIDLINE:
        return None
    return ("top" if y < 0 else "bottom") + ("left" if x < 0 else "right")


Hint = tuple[str, str]
Answers = Iterator[tuple[str, str, *tuple[Hint, ...]]]


def _by_shape(mover: Mover) -> Hint:
    return mover.shape, mover.colour


def _by_colour(mover: Mover) -> Hint:
    return mover.colour, mover.shape


def _name(mover: Mover, rng: np.random.Generator) -> str:
    by_shape = mover.then is not None or rng.random() < 0.4
    return mover.shape if by_shape else mover.colour


def _colour(scene: Scene, rng: np.random.Generator) -> Answers:
    for mover in scene.movers:
        if mover.then is None:
            yield f"which colour has the {mover.shape} ?", mover.colour, _by_shape(mover)


def _shape(scene: Scene, rng: np.random.Generator) -> Answers:
    for mover in scene.movers:
        if mover.then is None:
            yield f"which shape has the {mover.colour} thing ?", mover.shape, _by_colour(mover)


def _count(scene: Scene, rng: np.random.Generator) -> Answers:
    yield "how many things are there ?", str(len(scene.movers))


def _direction(scene: Scene, rng: np.random.Generator) -> Answers:
    for mover in scene.movers:
        name = _name(mover, rng)
        if answer := direction_of(scene, mover):
            yield f"where does the {name} thing move ?", answer, (name, answer)


def _end(scene: Scene, rng: np.random.Generator) -> Answers:
    for mover, sight in zip(scene.movers, scene.sight, strict=True):
        name = _name(mover, rng)
        x, y = mover.centres[mover.stop - 1] + scene.camera.near[mover.stop - 1]
        if (side := side_of(x, y)) and sight[mover.stop - 1] >= IN_SIGHT:
            yield f"where is the {name} thing last ?", side, (name, side)


def _first(scene: Scene, rng: np.random.Generator) -> Answers:
    for one, other in combinations(scene.movers, 2):
        if abs(one.start - other.start) >= CLEARLY:
            pair = [one, other] if rng.random() < 0.5 else [other, one]
            names = [_by_shape(mover) for mover in pair]
            earlier = min(pair, key=lambda mover: mover.start)
            yield f"which came first , {names[0][0]} or {names[1][0]} ?", earlier.shape, *names


def _touch(scene: Scene, rng: np.random.Generator) -> Answers:
    touching = {mover.shape for *pair, does in scene.meetings() if does for mover in pair}
    for mover in scene.movers:
        name = _name(mover, rng)
        answer = "yes" if mover.shape in touching else "no"
        yield f"does the {name} thing touch another ?", answer, (name, answer)


def _letter(scene: Scene, rng: np.random.Generator) -> Answers:
    for place in ("first", "last"):
        found = scene.flashes[0 if place == "first" else -1].letter if scene.flashes else "none"
        yield f"which letter flashed {place} ?", found


def _when(scene: Scene, rng: np.random.Generator) -> Answers:
    for flash in scene.flashes:
        share = (flash.start + flash.stop) / 2 / NUM_FRAMES * 3
        if abs(share - round(share)) * NUM_FRAMES / 3 >= 1 or round(share) in (0, 3):
            part = ("start", "middle", "end")[min(int(share), 2)]
            yield f"when did {flash.letter} flash ?", part, (flash.letter, part)


def _flashed(scene: Scene, rng: np.random.Generator) -> Answers:
    seen = [flash.letter for flash in scene.flashes]
    absent = [letter for letter in LETTERS if letter not in seen]
    for letter in [*seen, *rng.permutation(absent)[: max(1, len(seen))]]:
        answer = "yes" if letter in seen else "no"
        yield f"did {letter} flash ?", answer, (letter, answer)


def _views(scene: Scene, rng: np.random.Generator) -> Answers:
    yield "how many views are there ?", str(len(scene.views))


def _change(scene: Scene, rng: np.random.Generator) -> Answers:
    changed = [mover.shape for mover in scene.movers if mover.then is not None]
    yield "which shape changed colour ?", changed[0] if changed else "none"


_ASKERS: dict[str, Callable[[Scene, np.random.Generator], Answers]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "direction": _direction,
    "end": _end,
    "first": _first,
    "touch": _touch,
    "letter": _letter,
    "when": _when,
    "flashed": _flashed,
    "views": _views,
    "change": _change,
}

KINDS = tuple(_ASKERS)
"""Kinds of questions."""
