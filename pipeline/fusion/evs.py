"""Efficient video sampling: keep the tokens that differ most from the frame before.

Dimension key: T token frames, N = H*W cells of a frame, D channels, G = T*N tokens. The rules
(arXiv 2510.14624, in the form that compares embeddings, not pixels) and their ties:

1. A token's score is its cosine with the token of the same cell one frame earlier, kept or not;
   -inf for the tokens of frame 0.
2. The K tokens with the smallest scores are kept, the earlier of equals. Frame 0 is kept whole.
3. A dropped token is represented by the latest kept token of its cell before it.

Cosines are float32 whatever the tokens are stored in: in bfloat16 most of them would be equal, and
a tie goes to the earlier frame.
"""

import torch
from torch import Tensor

from pipeline.fusion.budgets import require_a_frame
from pipeline.fusion.cosine import cosines_with_earlier
from pipeline.fusion.plan import FusionPlan
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid


@torch.no_grad()
def plan_evs(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Plan efficient video sampling.

    ``FusionPlan.score`` is the cosine with the frame before, -inf in frame 0. The storage order
    ascends by it, so every smaller budget is a prefix.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        config: ``budget`` is used; without one the method's share is kept, but a whole frame at
            least.

    Raises:
        FusionError: tokens that are not finite, or a budget below the tokens of one frame.
    """
    if config.budget is not None:
        require_a_frame(config, grid)
    num_kept = max(grid.tokens_per_frame, config.num_kept(grid.num_tokens))
    score_G = cosines_with_earlier(tokens, grid, lags=[0] + [1] * (grid.frames - 1)).flatten()
    keep_index = score_G.argsort(stable=True)[:num_kept].sort().values
    score = score_G[keep_index]
    return FusionPlan(
        method=config.method,
        grid=grid,
        keep_index=keep_index,
        match_index=_latest_kept(keep_index, grid),
        score=score,
        storage_order=score.argsort(stable=True),
        nested=True,
    )


def _latest_kept(keep_index: Tensor, grid: TokenGrid) -> Tensor:
    """The latest kept token of the same cell up to each token; frame 0 is kept whole.

    Args:
        keep_index: ``(K,)`` int64.
        grid: the grid of all tokens.

    Returns:
        ``(G,)`` int64 grid indices.
    """
    latest_G = torch.zeros(grid.num_tokens, dtype=torch.int64, device=keep_index.device)
    latest_G[keep_index] = keep_index
    latest_TN = latest_G.view(grid.frames, grid.tokens_per_frame)
    return latest_TN.cummax(dim=0).values.flatten()
