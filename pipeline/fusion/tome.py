"""Token merging: the most alike pairs of tokens become their mean, again and again.

Dimension key: G tokens of the grid, n of them left in a round, S sources, R destinations, D
channels. One round (arXiv 2210.09461, over all tokens of a video) and its ties:

1. The tokens that are left are counted in grid order: 0, 2, ... are sources, 1, 3, ...
   destinations.
2. Each source finds the destination with the greatest cosine, the earliest of equals. A token that
   others joined is the mean of all its members.
3. Of n tokens the ``min(S, n - K)`` sources with the greatest such cosine join their destinations,
   the earlier of equal sources first. A destination takes any number of them and keeps its place.

Rounds follow until K tokens are left. The mean of means, weighted by their sizes, is the mean of
all members, so a plan needs no more than who belongs to whom. Cosines take quadratic time.
"""

import torch
from torch import Tensor

from pipeline.fusion.averages import weighted_means
from pipeline.fusion.blocks import MULTIPLE, equal_blocks
from pipeline.fusion.cosine import norm, norm_of_frames
from pipeline.fusion.plan import FusionPlan
from pipeline.fusion.precision import full_precision
from schemas.errors import FusionError
from schemas.fusion import FusionConfig
from schemas.grid import TokenGrid

MOST_TOKENS = 65_536
"""Larger videos are refused: each doubling takes four times as long."""

_SOURCES_PER_BLOCK = 2048
_DESTINATIONS_PER_BLOCK = 1024


@torch.no_grad()
def plan_tome(tokens: Tensor, grid: TokenGrid, config: FusionConfig) -> FusionPlan:
    """Plan token merging down to ``config.num_kept(G)`` tokens.

    The score of a kept token is the number of tokens that are averaged in its row, itself
    included. Means are made anew for each block of a product and never kept: beside the plan, two
    blocks of rows and their cosines in float32 are all the memory that is taken.

    Args:
        tokens: ``(G, D)`` floating.
        grid: the grid of these tokens.
        config: ``budget`` is used.

    Raises:
        FusionError: tokens that are not finite, or more than ``MOST_TOKENS`` of them.
    """
    _require_few(grid)
    norm_of_frames(tokens, grid)
    num_kept = config.num_kept(grid.num_tokens)
    alive_n = torch.arange(grid.num_tokens, device=tokens.device)
    match_G = alive_n.clone()
    while len(alive_n) > num_kept:
        sources_S, destinations_R = alive_n[0::2], alive_n[1::2]
        cosine_S, best_S = _most_alike(tokens, match_G, sources_S, destinations_R)
        order_S = cosine_S.argsort(descending=True, stable=True)
        joining = order_S[: len(alive_n) - num_kept]
        joined_G = torch.arange(grid.num_tokens, device=tokens.device)
        joined_G[sources_S[joining]] = best_S[joining]
        match_G = joined_G[match_G]
        alive_n = alive_n[joined_G[alive_n] == alive_n]
    size_G = torch.bincount(match_G, minlength=grid.num_tokens)
    return FusionPlan(
        method="tome",
        grid=grid,
        keep_index=alive_n,
        match_index=match_G,
        weight=size_G[match_G].float().reciprocal(),
        score=size_G[alive_n].float(),
        storage_order=torch.arange(len(alive_n), device=tokens.device),
        nested=False,
    )


def _require_few(grid: TokenGrid) -> None:
    if grid.num_tokens > MOST_TOKENS:
        raise FusionError(
            f"fusion method 'tome' compares every token with every other, and this video of {grid} "
            f"tokens has {grid.num_tokens}, more than the {MOST_TOKENS} that can be compared in "
            "reasonable time. Sample fewer frames, or choose a method whose time grows with the "
            "number of tokens only, such as 'framefusion' or 'ttf'."
        )


def _most_alike(
    tokens: Tensor, match_G: Tensor, sources_S: Tensor, destinations_R: Tensor
) -> tuple[Tensor, Tensor]:
    """The destination with the greatest cosine with each source, the earliest of equals.

    Args:
        tokens: ``(G, D)`` floating.
        match_G: ``(G,)`` int64, whom each token has joined so far.
        sources_S: ``(S,)`` int64 grid indices.
        destinations_R: ``(R,)`` int64 grid indices, ascending.

    Returns:
        ``(S,)`` float32 cosines and ``(S,)`` int64 grid indices of the destinations.
    """
    cosine_S = torch.empty(sources_S.shape, dtype=torch.float32, device=tokens.device)
    best_S = torch.empty_like(sources_S)
    destination_blocks = equal_blocks(len(destinations_R), _DESTINATIONS_PER_BLOCK)
    with full_precision(tokens.device.type):
        for sources in equal_blocks(len(sources_S), _SOURCES_PER_BLOCK):
            here, best = cosine_S[sources], best_S[sources]
            rows, norms = _rows(tokens, match_G, sources_S[sources])
            here.fill_(-torch.inf)
            for destinations in destination_blocks:
                others = destinations_R[destinations]
                other_rows, other_norms = _rows(tokens, match_G, others)
                cosines = (rows @ other_rows.T).div_(other_norms)[: len(here), : len(others)]
                value, place = cosines.max(dim=1)
                better = value > here
                best.copy_(torch.where(better, others[place], best))
                here.copy_(torch.where(better, value, here))
            here.div_(norms[: len(here)])
    return cosine_S, best_S


def _rows(tokens: Tensor, match_G: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The means that stand at ``index`` in float32, filled up with zeros, and their norms."""
    ones_G = torch.ones(len(tokens), dtype=torch.float32, device=tokens.device)
    rows = weighted_means(tokens, match_G, ones_G, index, dtype=torch.float32)
    missing_rows, missing_channels = (-side % MULTIPLE for side in rows.shape)
    rows = torch.nn.functional.pad(rows, (0, missing_channels, 0, missing_rows))
    return rows, norm(rows)
