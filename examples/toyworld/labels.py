"""What each visual token shows of a scene: labels that teach the vision tower to look.

Only tokens that show a thing or a letter have any. The background has none: a label for it would
draw all backgrounds to one direction and leave a fusion nothing to tell apart.
"""

import numpy as np
import numpy.typing as npt

from examples.toyworld.questions import direction_of, side_of
from examples.toyworld.scene import (
    APART,
    BOX,
    COLOURS,
    DIRECTIONS,
    GLOW_FRAMES,
    LETTERS,
    NUM_FRAMES,
    SHAPES,
    SIDE,
    TOUCHING,
    Mover,
    Scene,
)

TOKEN_SIDE = 16
"""Pixels on each side of a visual token."""

FRAMES_PER_TOKEN = 2

GROUPS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "direction": tuple(DIRECTIONS),
    "side": ("topleft", "topright", "bottomleft", "bottomright"),
    "touch": ("no", "yes"),
    "letter": LETTERS,
}
"""Words of each group; a label is the place of one in it."""

NO_LABEL = -100

NEAR = 10.0
"""Pixels, across and down, from a token's middle to that of a thing it shows."""

SHOWN = 0.3
"""Share of a letter's box that a token shows at least."""

Labels = npt.NDArray[np.int64]

_ACROSS = SIDE // TOKEN_SIDE


def token_labels(scene: Scene) -> Labels:
    """Labels of all tokens, ``(len(GROUPS), T, N)`` int64, ``NO_LABEL`` where there is none."""
    num_token_frames = NUM_FRAMES // FRAMES_PER_TOKEN
    labels = np.full((len(GROUPS), num_token_frames, _ACROSS, _ACROSS), NO_LABEL)
    for t in range(num_token_frames):
        for mover in scene.movers:
            _label_mover(labels[:, t], scene, mover, t * FRAMES_PER_TOKEN)
        for flash in scene.flashes:
            first = t * FRAMES_PER_TOKEN
            if flash.start <= first and first + FRAMES_PER_TOKEN <= flash.stop:
                cells = _cells_of_box(flash.corner)
                labels[:, t, cells] = NO_LABEL
                labels[-1, t, cells] = LETTERS.index(flash.letter)
    return labels.reshape(len(GROUPS), num_token_frames, -1)


def _label_mover(labels: Labels, scene: Scene, mover: Mover, frame: int) -> None:
    """Label the tokens of one token frame, ``(len(GROUPS), rows, columns)``."""
    frames = slice(frame, frame + FRAMES_PER_TOKEN)
    x, y = (mover.centres[frames] + scene.camera.near[frames]).mean(axis=0)
    if np.isnan(x):
        return
    middles = (np.arange(_ACROSS) + 0.5) * TOKEN_SIDE
    cells = (np.abs(middles - y) <= NEAR)[:, None] & (np.abs(middles - x) <= NEAR)
    words = {
        "colour": _colour(mover, frame),
        "shape": mover.shape,
        "direction": direction_of(scene, mover),
        "side": side_of(x, y),
        "touch": _touch(scene, mover, frames),
    }
    for number, (group, choices) in enumerate(GROUPS.items()):
        word = words.get(group)
        labels[number, cells] = NO_LABEL if word is None else choices.index(word)


def _colour(mover: Mover, frame: int) -> str | None:
    """None while it glows, wholly or for a part of the token frame."""
    if mover.changes_at is None or frame + FRAMES_PER_TOKEN <= mover.changes_at:
        return mover.colour
    return mover.then if frame >= mover.changes_at + GLOW_FRAMES else None


def _touch(scene: Scene, mover: Mover, frames: slice) -> str | None:
    """Whether it touches another in these frames; None where it comes near."""
    nearest = np.inf
    for other in scene.movers:
        if other is not mover:
            apart = np.linalg.norm(mover.centres[frames] - other.centres[frames], axis=1)
            share = apart.min() / (mover.radius + other.radius)
            nearest = nearest if np.isnan(share) else min(nearest, share)
    if TOUCHING < nearest < APART:
        return None
    return "yes" if nearest <= TOUCHING else "no"


def _cells_of_box(corner: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """``(rows, columns)``, True where a token shows enough of a letter's box."""
    starts = np.arange(_ACROSS) * TOKEN_SIDE
    across, down = (
        np.minimum(starts + TOKEN_SIDE, place + length) - np.maximum(starts, place)
        for place, length in zip(corner, BOX, strict=True)
    )
    areas = np.maximum(down, 0)[:, None] * np.maximum(across, 0)
    is_enough: npt.NDArray[np.bool_] = areas >= SHOWN * BOX[0] * BOX[1]
    return is_enough
