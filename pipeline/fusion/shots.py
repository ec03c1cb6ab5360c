"""TTF with an anchor frame for each shot: one global anchor keeps what another shot shows in full.

Dimension key: T token frames, N = H*W cells of a frame, D channels, K kept tokens. The rules:

1. The likeness of two neighbouring frames is the cosine of their mean tokens. With m the median of
   all T - 1 likenesses and s the median of their distances from m, frame t may begin a shot when
   its likeness to frame t - 1 is less than ``m - 12 * s`` and less than 0.97. Where nothing moves
   between cuts s is 0, and the 0.97 decides; where everything moves alike, m does.
2. Cuts are taken from the least likeness on, the earlier among equals. One that would leave a shot
   of a single frame, before it or behind it, is dropped. Fewer than four frames are one shot.
3. In each shot temporal token fusion is done as in a video of its own (``pipeline.fusion.ttf``).
   All anchors are kept.
4. A budget that cannot hold an anchor frame for each shot takes only the first of these cuts, as
   many as it can hold anchors for.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.fusion.anchor import frame_means, most_typical
from pipeline.fusion.budgets import require_a_frame
from pipeline.fusion.cosine import norm
from pipeline.fusion.forms import Form, form_for
from pipeline.fusion.plan import FusionPlan
from pipeline.fusion.ttf import Shot, fuse_into_anchors
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid

_SPREADS_BELOW = 12
_ALIKE = 0.97
_SHORTEST = 2


@torch.no_grad()
def plan_ttf_shots(
    tokens: Tensor, grid: TokenGrid, config: FusionConfig, *, form: Form | None = None
) -> FusionPlan:
    """Plan temporal token fusion in each shot.

    Threshold and budget work as in ``plan_ttf``. A token's score is its best cosine with the anchor
    of its shot, -inf for the anchors' own tokens. The storage order begins with the anchors of all
    shots, spread over the video: every budget that holds them is a prefix of it. A smaller one
    finds fewer shots, and is another plan.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        config: ``threshold``, ``window`` and ``budget`` are used.
        form: how means and cosines are computed; None takes the fastest there is.

    Raises:
        FusionError: tokens that are not finite, or a budget below the tokens of one frame.
    """
    require_a_frame(config, grid)
    form = form or form_for(tokens)
    most = grid.frames
    if config.budget is not None:
        most = config.num_kept(grid.num_tokens) // grid.tokens_per_frame
    return fuse_into_anchors(tokens, grid, config, find_shots(tokens, grid, most, form=form), form)


@torch.no_grad()
def find_shots(
    tokens: Tensor, grid: TokenGrid, most: int | None = None, *, form: Form | None = None
) -> list[Shot]:
    """The shots of a video by the rules above, each with its most typical frame as anchor.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        most: shots at most, 1 or more; None: as many as there are.
        form: how the frames are summed; None takes the fastest there is.

    Returns:
        At least one shot; they cover the frames in order.

    Raises:
        FusionError: tokens that are not finite.
    """
    means_TD = frame_means(tokens, grid, form=form)
    cuts = _cuts(_likeness(means_TD), grid.frames if most is None else most)
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    shots = []
    for start, stop in zip([0, *cuts], [*cuts, grid.frames], strict=True):
        part = TokenGrid(stop - start, grid.height, grid.width)
        rows = frames_TND[start:stop].flatten(0, 1)
        anchor = start + most_typical(rows, part, means_TD[start:stop])
        shots.append(Shot(start, stop, anchor))
    return shots


def _likeness(means_TD: Tensor) -> NDArray[np.float32]:
    """Cosine of each frame's mean with that of the frame before, ``(T-1,)``; A-B equals B-A."""
    unit_TD = means_TD / norm(means_TD)[:, None]
    likeness: NDArray[np.float32] = (unit_TD[1:] * unit_TD[:-1]).sum(dim=1).cpu().numpy()
    return likeness


def _cuts(likeness: NDArray[np.float32], most_shots: int) -> list[int]:
    """Frames that begin a shot but the first, ascending: rules 1, 2 and 4."""
    num_frames = len(likeness) + 1
    if num_frames < 2 * _SHORTEST:
        return []
    values = likeness.astype(np.float64)
    middle = np.median(values)
    spread = np.median(np.abs(values - middle))
    is_cut = (values < middle - _SPREADS_BELOW * spread) & (values < _ALIKE)
    too_near = np.zeros(num_frames + 1, dtype=bool)
    too_near[:_SHORTEST] = too_near[num_frames - _SHORTEST + 1 :] = True
    cuts: list[int] = []
    for before in values.argsort(kind="stable").tolist():
        if not is_cut[before] or len(cuts) + 1 >= most_shots:
            break
        if not too_near[before + 1]:
            cuts.append(before + 1)
            too_near[before + 2 - _SHORTEST : before + 1 + _SHORTEST] = True
    return sorted(cuts)
