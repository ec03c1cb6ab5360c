"""Temporal token fusion: tokens that look like one of the anchor frame are fused into it.

Dimension key: T token frames, N = H*W cells of a frame, D channels, G = T*N tokens. The rules
(arXiv 2605.07355) and their ties:

1. The anchor is the frame whose mean token has the greatest cosine with the mean of the video;
   the earliest such frame.
2. A token's match is the token with the greatest cosine in the window around its cell in the
   anchor, clipped at the borders; the earliest such place, row by row.
3. A token is fused when that cosine is strictly greater than the threshold. The match stands for
   it, unchanged. The anchor's own tokens are all kept.

The cosine does not depend on the threshold: every lower threshold keeps a prefix of the storage
order (anchor tokens, then ascending cosine), and a budget is such a prefix too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.fusion.anchor import select_anchor
from pipeline.fusion.budgets import require_a_frame
from pipeline.fusion.forms import Form, form_for
from pipeline.fusion.plan import FusionPlan
from pipeline.fusion.spread import spread_frames
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid


@dataclass(frozen=True, slots=True)
class Shot:
    """Token frames ``start`` to ``stop - 1``, and the one of them that stands for the others."""

    start: int
    stop: int
    anchor: int


@torch.no_grad()
def plan_ttf(
    tokens: Tensor, grid: TokenGrid, config: FusionConfig, *, form: Form | None = None
) -> FusionPlan:
    """Plan temporal token fusion.

    The threshold is rounded to float32, as scores are. With a budget it is not used: the anchor's
    tokens and then the smallest scores are kept, earlier tokens first among equals, and the
    effective threshold lies between the last kept score and the next one.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        config: ``threshold``, ``window`` and ``budget`` are used.
        form: how cosines are computed; None takes the fastest there is.

    Raises:
        FusionError: tokens that are not finite, or a budget below the tokens of one frame.
    """
    require_a_frame(config, grid)
    form = form or form_for(tokens)
    anchor = select_anchor(tokens, grid, form=form)
    return fuse_into_anchors(tokens, grid, config, [Shot(0, grid.frames, anchor)], form)


def fuse_into_anchors(
    tokens: Tensor, grid: TokenGrid, config: FusionConfig, shots: Sequence[Shot], form: Form
) -> FusionPlan:
    """Fuse the tokens of each shot into those of its anchor frame.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        config: ``threshold``, ``window`` and ``budget`` are used.
        shots: they cover the frames in order; a budget holds all their anchors.
        form: how cosines are computed.
    """
    score_G, match_G = best_match(tokens, grid, shots, window=config.window, form=form)
    if config.budget is None:
        is_kept = score_G <= config.fuses_above
    else:
        is_kept = torch.zeros_like(score_G, dtype=torch.bool)
        is_kept[score_G.argsort(stable=True)[: config.num_kept(grid.num_tokens)]] = True
    keep_index = is_kept.nonzero().squeeze(1)
    score = score_G[keep_index]
    every = torch.arange(grid.num_tokens, device=tokens.device)
    order = score.argsort(stable=True)
    return FusionPlan(
        method=config.method,
        grid=grid,
        keep_index=keep_index,
        match_index=torch.where(is_kept, every, match_G),
        score=score,
        storage_order=spread_frames(order, len(shots), grid.tokens_per_frame),
        nested=True,
        anchor_frame=shots[0].anchor if config.abilities.anchored else None,
    )


@torch.no_grad()
def best_match(
    tokens: Tensor, grid: TokenGrid, shots: Sequence[Shot], *, window: int, form: Form | None = None
) -> tuple[Tensor, Tensor]:
    """The greatest cosine of every token with its shot's anchor's tokens around its cell.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        shots: they cover the frames in order.
        window: odd side of the square that is searched, clipped at the borders.
        form: how cosines are computed; None takes the fastest there is.

    Returns:
        ``(G,)`` float32 cosines and ``(G,)`` int64 grid indices of the matches. The anchors' own
        tokens have -inf and themselves.

    Raises:
        FusionError: tokens so large that their norm overflows float32.
    """
    form = form or form_for(tokens)
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    own_N = torch.arange(grid.tokens_per_frame, device=tokens.device)
    cosines, matches = [], []
    for shot in shots:
        part = TokenGrid(shot.stop - shot.start, grid.height, grid.width)
        rows = frames_TND[shot.start : shot.stop].flatten(0, 1)
        cosine_FN, cell_FN = form.match_plane(rows, frames_TND[shot.anchor], part, window=window)
        cosine_FN[shot.anchor - shot.start] = -torch.inf
        cell_FN[shot.anchor - shot.start] = own_N
        cosines.append(cosine_FN)
        matches.append(cell_FN + shot.anchor * grid.tokens_per_frame)
    return torch.cat(cosines).flatten(), torch.cat(matches).flatten()
