"""DyCoke, first stage: of three frames in four, keep what differs most from a partner frame.

Dimension key: T token frames, N = H*W cells of a frame, D channels, R reduced frames, G = T*N
tokens. The rules (arXiv 2411.15024, temporal merging) and their ties, frames counted from 0:

1. The frames 0, 4, 8, ... are kept whole. Every odd frame is compared with the frame before it,
   and the frames 2, 6, 10, ... with the one two before: all that exist, the last ones too.
2. A reduced frame keeps the tokens whose cosines with the same cell of its partner are lowest, the
   earlier of equals. Partners are compared as they were, whatever is dropped of them.
3. Without a budget a reduced frame keeps 3 N / 10 tokens, rounded down, but never none. With one
   all reduced frames keep equally many, and the earliest of them one more while tokens are left.
4. A dropped token is represented by its partner frame's token of the same cell, and where that
   was dropped too, by what represents it.
"""

import torch
from torch import Tensor

from pipeline.fusion.cosine import cosines_with_earlier
from pipeline.fusion.plan import FusionPlan
from pipeline.fusion.spread import spread_frames
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid

_PARTNER_LAG = (0, 1, 2, 1)
"""How far before each frame of a group of four its partner stands; 0: the frame is kept whole."""


@torch.no_grad()
def plan_dycoke(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Plan the first stage of DyCoke.

    ``FusionPlan.score`` is -inf in frames kept whole; elsewhere it is the token's place among those
    of its frame by ascending cosine, over N. The storage order ascends by it, so every budget down
    to the frames kept whole is a prefix; these are spread over the video.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        config: ``budget`` is used.

    Raises:
        FusionError: tokens that are not finite, or a budget below the frames kept whole.
    """
    frames_R = torch.tensor([t for t in range(grid.frames) if _lag(t)], dtype=torch.int64)
    count_R = _frame_counts(grid, config, len(frames_R)).to(tokens.device)
    frames_R = frames_R.to(tokens.device)
    cosine_TN = cosines_with_earlier(tokens, grid, lags=[_lag(t) for t in range(grid.frames)])
    place_RN = cosine_TN[frames_R].argsort(dim=1, stable=True).argsort(dim=1)
    is_kept_TN = torch.ones_like(cosine_TN, dtype=torch.bool)
    is_kept_TN[frames_R] = place_RN < count_R[:, None]
    score_TN = torch.full_like(cosine_TN, -torch.inf)
    score_TN[frames_R] = (place_RN.double() / grid.tokens_per_frame).float()
    score = score_TN[is_kept_TN]
    return FusionPlan(
        method=config.method,
        grid=grid,
        keep_index=is_kept_TN.flatten().nonzero().squeeze(1),
        match_index=_matches(is_kept_TN),
        score=score,
        storage_order=spread_frames(
            score.argsort(stable=True), grid.frames - len(frames_R), grid.tokens_per_frame
        ),
        nested=True,
    )


def _lag(frame: int) -> int:
    return _PARTNER_LAG[frame % len(_PARTNER_LAG)]


def _frame_counts(grid: TokenGrid, config: FusionConfig, num_reduced: int) -> Tensor:
    """Tokens that each reduced frame keeps, ``(R,)`` int64 on the CPU."""
    if config.budget is None:
        return torch.full((num_reduced,), max(1, 3 * grid.tokens_per_frame // 10))
    num_kept = config.num_kept(grid.num_tokens)
    num_whole = grid.frames - num_reduced
    num_shared = num_kept - num_whole * grid.tokens_per_frame
    if num_shared < 0:
        raise FusionError(
            f"fusion method {config.method!r} keeps {num_whole} of the {grid.frames} token frames "
            f"whole (the first of every four), and budget={config.budget!r} grants this video of "
            f"{grid} tokens only {num_kept}. Ask for at least {num_kept - num_shared} tokens, or "
            "choose 'random' or 'uniform'."
        )
    share, left_over = divmod(num_shared, max(1, num_reduced))
    return share + (torch.arange(num_reduced) < left_over).long()


def _matches(is_kept_TN: Tensor) -> Tensor:
    """Each kept token itself, and for a dropped one what its partner has; ``(G,)`` int64."""
    match_TN = torch.arange(is_kept_TN.numel(), device=is_kept_TN.device).view_as(is_kept_TN)
    for t, is_kept_N in enumerate(is_kept_TN):
        match_TN[t] = torch.where(is_kept_N, match_TN[t], match_TN[t - _lag(t)])
    return match_TN.flatten()
