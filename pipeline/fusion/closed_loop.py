"""TTF in a closed loop: tokens are fused into any that were kept so far, never into fused ones.

Dimension key: T token frames, N = H*W cells of a frame, D channels, G = T*N tokens, K kept tokens.
A plane names a kept token for each cell of a frame. There are at most three, in the order in which
they were last used, the latest first. The rules:

1. Frame 0 is kept whole and is the first plane.
2. In each later frame, in order, a token is compared with the tokens that a plane names in the
   window around its cell, clipped at the borders. Its match is the one of greatest cosine over all
   planes; among equals that of the plane used last, then the earliest place, row by row.
3. The token is fused into its match when that cosine is strictly greater than the threshold.
   Otherwise it is kept.
4. When more than half of the frame's tokens are kept, it becomes a new plane, the latest used: it
   names the kept tokens in their own cells, and in every other cell the match of the token there.
   Of four planes the one used longest ago is given up.
5. Otherwise the plane in which most of the frame's fused tokens have their match, the later used
   among equals, becomes the latest used, and the kept tokens take their cells in it.

So a view that comes back after a cut finds its plane again, a token is never more different from
what stands for it than the threshold allows, and nothing depends on later frames. A plane may name
a token of another cell, so a match may lie outside the window in the grid.

A budget needs a threshold that is found by bisection, because what is kept changes what later
tokens are compared with; so much that a slightly higher threshold may keep fewer. The threshold is
the highest one found at which no more than K tokens are kept. Those that are then missing are the
fused tokens of the smallest cosines, the earlier among equals; they stand for themselves, and
nothing else changes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.fusion.anchor import frame_means
from pipeline.fusion.budgets import require_a_frame
from pipeline.fusion.cosine import norm_of_frames
from pipeline.fusion.forms import Form, form_for
from pipeline.fusion.plan import FusionPlan
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid

_MOST_PLANES = 3
_MOST_PASSES = 24
_BELOW_ALL, _ABOVE_ALL = -2.0, 2.0
"""Thresholds that no cosine reaches: all but frame 0 is fused, or nothing."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one pass over the video decided at one threshold.

    Attributes:
        score: ``(G,)`` float32, the best cosine of each token; -inf in frame 0.
        match: ``(G,)`` int64, the token each is fused into; kept tokens have themselves.
        is_kept: ``(G,)`` bool.
    """

    score: Tensor
    match: Tensor
    is_kept: Tensor

    @property
    def num_kept(self) -> int:
        return int(self.is_kept.sum())

    @property
    def fused_score(self) -> Tensor:
        """The scores, inf where a token is kept."""
        return self.score.masked_fill(self.is_kept, torch.inf)

    @property
    def smallest_fused(self) -> float:
        """The smallest score of a fused token, inf without one."""
        return float(self.fused_score.min())

    def with_more(self, count: int) -> "_Pass":
        """The same, but ``count`` of the fused tokens stand for themselves: the smallest scores."""
        more = self.fused_score.argsort(stable=True)[:count]
        return _Pass(
            self.score,
            self.match.index_copy(0, more, more),
            self.is_kept.index_fill(0, more, True),
        )


@torch.no_grad()
def plan_ttf_closed(
    tokens: Tensor, grid: TokenGrid, config: FusionConfig, *, form: Form | None = None
) -> FusionPlan:
    """Plan temporal token fusion in a closed loop.

    A token's score is its best cosine with what was kept before it, -inf in frame 0. Rows are
    stored in grid order. The threshold is rounded to float32, as scores are; with a budget it is
    not used, and the video is gone through up to 25 times.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        config: ``threshold``, ``window`` and ``budget`` are used.
        form: how cosines are computed; None takes the fastest there is.

    Raises:
        FusionError: tokens that are not finite, or a budget below the tokens of one frame.
    """
    require_a_frame(config, grid)
    chosen = form or form_for(tokens)
    frame_means(tokens, grid, form=chosen)
    norm_of_frames(tokens, grid)  # also of tokens that nothing is compared with

    def run(threshold: float) -> _Pass:
        return _go_through(tokens, grid, threshold, config.window, chosen)

    if config.budget is None:
        found = run(config.fuses_above)
    else:
        found = _reach_budget(run, config.num_kept(grid.num_tokens))
    keep_index = found.is_kept.nonzero().squeeze(1)
    return FusionPlan(
        method=config.method,
        grid=grid,
        keep_index=keep_index,
        match_index=found.match,
        score=found.score[keep_index],
        storage_order=torch.arange(len(keep_index), device=tokens.device),
        nested=False,
    )


def _go_through(
    tokens: Tensor, grid: TokenGrid, threshold: float, window: int, form: Form
) -> _Pass:
    """Rules 1 to 5 at one threshold."""
    match = partial(form.match_plane, grid=TokenGrid(1, grid.height, grid.width), window=window)
    frames_TND = tokens.view(grid.frames, grid.tokens_per_frame, -1)
    own_TN = torch.arange(grid.num_tokens, device=tokens.device).view(grid.frames, -1)
    match_TN = own_TN.clone()
    score_TN = torch.full(own_TN.shape, -torch.inf, dtype=torch.float32, device=tokens.device)
    is_kept_TN = torch.ones_like(own_TN, dtype=torch.bool)
    planes = [own_TN[0]]
    for t in range(1, grid.frames):
        found = [match(frames_TND[t], tokens[plane_N]) for plane_N in planes]
        matches = [plane_N[cell_1N] for plane_N, (_, cell_1N) in zip(planes, found, strict=True)]
        score_TN[t], choice_N = torch.cat([cosine_1N for cosine_1N, _ in found]).max(dim=0)
        best_N = torch.cat(matches).gather(0, choice_N[None])[0]
        is_kept_TN[t] = score_TN[t] <= threshold
        match_TN[t] = torch.where(is_kept_TN[t], own_TN[t], best_N)
        planes = _renew(planes, match_TN[t], is_kept_TN[t], choice_N)
    return _Pass(score_TN.flatten(), match_TN.flatten(), is_kept_TN.flatten())


def _renew(
    planes: list[Tensor], match_N: Tensor, is_kept_N: Tensor, choice_N: Tensor
) -> list[Tensor]:
    """Rules 4 and 5: the planes after a frame.

    Args:
        planes: the latest used first; ``(N,)`` int64 grid indices each.
        match_N: ``(N,)`` int64, what stands for each token of the frame, itself where it is kept.
        is_kept_N: ``(N,)`` bool.
        choice_N: ``(N,)`` int64, the place in ``planes`` of the plane each token is most alike.
    """
    if 2 * int(is_kept_N.sum()) > len(is_kept_N):
        return [match_N, *planes][:_MOST_PLANES]
    uses = torch.bincount(choice_N[~is_kept_N], minlength=len(planes)).tolist()
    used = uses.index(max(uses))
    renewed_N = torch.where(is_kept_N, match_N, planes[used])
    return [renewed_N, *planes[:used], *planes[used + 1 :]]


def _reach_budget(run: Callable[[float], _Pass], num_kept: int) -> _Pass:
    """Exactly ``num_kept`` tokens, which are those of frame 0 at least.

    One pass decides alike at every threshold from its greatest kept score to just below its
    smallest fused one: the bisection goes on outside of these.
    """
    best = run(_BELOW_ALL)
    low, high = best.smallest_fused, _ABOVE_ALL
    for _ in range(_MOST_PASSES):
        if best.num_kept == num_kept or low >= high:
            break
        middle = float(np.float32((low + high) / 2))
        found = run(middle if middle < high else low)
        if found.num_kept <= num_kept:
            best, low = found, found.smallest_fused
        else:
            high = float(found.score[found.is_kept].max())
    return best.with_more(num_kept - best.num_kept)
