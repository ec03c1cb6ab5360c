"""FrameFusion's first step: runs of tokens that resemble the frame before become their mean.

Dimension key: T token frames, N = H*W cells of a frame, D channels, G = T*N tokens. The rules
(arXiv 2501.01986, the merge of the input embeddings) and their ties:

1. A token's similarity is its cosine with the token of the same cell one frame before, whatever
   becomes of that one. The first frame has none.
2. A token is merged when its similarity is at least the threshold, equal included; both are
   compared in float32. With a budget the most similar tokens are merged, the earlier of equals
   first.
3. Consecutive merged tokens of a cell join the kept token before them, their head. It becomes the
   mean of them all, each counted once, and stands at the place of the head.

The later steps of the method, inside a language model, need its hidden states and its attention to
the question: they have no place in a cache. A run may drift: its last token need not resemble its
head.
"""

import torch
from torch import Tensor

from pipeline.fusion.budgets import require_a_frame
from pipeline.fusion.cosine import cosines_with_earlier
from pipeline.fusion.plan import FusionPlan
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid


@torch.no_grad()
def plan_framefusion(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Plan FrameFusion's merge of visual tokens.

    The score of a kept token is its similarity, -inf in the first frame. Budgets are not nested:
    a smaller one changes the means.

    Args:
        tokens: ``(T*N, D)`` floating.
        grid: the grid of these tokens.
        config: ``threshold`` and ``budget`` are used; with a budget the threshold is not.

    Raises:
        FusionError: tokens that are not finite, or a budget below the tokens of one frame.
    """
    require_a_frame(config, grid)
    similarity_G = cosines_with_earlier(tokens, grid, lags=[0] + [1] * (grid.frames - 1)).flatten()
    if config.budget is None:
        is_merged_G = similarity_G >= config.fuses_above
    else:
        num_merged = grid.num_tokens - config.num_kept(grid.num_tokens)
        most_similar = similarity_G.argsort(descending=True, stable=True)[:num_merged]
        is_merged_G = torch.zeros_like(similarity_G, dtype=torch.bool)
        is_merged_G[most_similar] = True
    keep_index = (~is_merged_G).nonzero().squeeze(1)
    match_G = _heads(is_merged_G, grid)
    length_G = torch.bincount(match_G, minlength=grid.num_tokens)[match_G]
    return FusionPlan(
        method="framefusion",
        grid=grid,
        keep_index=keep_index,
        match_index=match_G,
        weight=length_G.float().reciprocal(),
        score=similarity_G[keep_index],
        storage_order=torch.arange(len(keep_index), device=tokens.device),
        nested=False,
    )


def _heads(is_merged_G: Tensor, grid: TokenGrid) -> Tensor:
    """For every token the last one of its cell, not after it, that is not merged."""
    every_G = torch.arange(grid.num_tokens, device=is_merged_G.device)
    kept_G = every_G.masked_fill(is_merged_G, -1)
    return kept_G.view(grid.frames, grid.tokens_per_frame).cummax(dim=0).values.flatten()
